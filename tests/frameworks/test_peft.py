"""LoRA by PEFT on frozen and quantised bases: what is trained, beside plain torch, at every door."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("peft")

import accelerate
import peft
import transformers
from trainers import logged

import gradops
from gradops import accelerate as ga
from gradops import transformers as gt

CLOSE = {"rtol": 1e-3, "atol": 1e-6}
CLIP = 0.02  # less than any norm here
# bitsandbytes has one scale for 64 weights of a row.
CONFIG = {
    "vocab_size": 32,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


class Int8Linear(nn.Module):
    """A layer whose frozen weight is int8, a parameter all the same."""

    def __init__(self, linear):
        super().__init__()
        self.scale = linear.weight.detach().abs().amax() / 127
        self.weight = nn.Parameter((linear.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, inputs):
        return nn.functional.linear(inputs, self.weight.to(inputs.dtype) * self.scale, self.bias)


def replace_linears(encoder, make, only=""):
    for name, layer in list(encoder.named_modules()):
        if isinstance(layer, nn.Linear) and only in name:
            parent, _, last = name.rpartition(".")
            setattr(encoder.get_submodule(parent), last, make(layer))


def by_hand(model):
    replace_linears(model.bert.encoder, Int8Linear, only="dense")


def torchao(model):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model.bert, quantization.Int8WeightOnlyConfig())


def bitsandbytes(model):
    bnb = pytest.importorskip("bitsandbytes")

    def four_bits(linear):
        made = bnb.nn.Linear4bit(linear.in_features, linear.out_features, quant_type="nf4")
        made.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
        made.bias = linear.bias
        return made

    replace_linears(model.bert.encoder, four_bits)
    model.bert.encoder.to("cpu")  # quantises


BASES = {"float32": lambda model: None, "int8 by hand": by_hand, "torchao": torchao, "bitsandbytes": bitsandbytes}


def base(kind):
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=2, **CONFIG))
    BASES[kind](model)
    return model


def adapted(kind):
    lora = peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS")
    model = peft.get_peft_model(base(kind), lora)
    for name, param in model.named_parameters():  # PEFT begins with zeros, which hide half of what is trained
        if "lora_B" in name:
            nn.init.normal_(param, std=0.1)
    return model


@pytest.fixture(params=BASES)
def kind(request):
    return request.param


def batches(count=6):
    numbers = torch.Generator().manual_seed(1)
    inputs = [torch.randint(0, 32, (4, 6), generator=numbers) for _ in range(count)]
    return [{"input_ids": ids, "labels": ids[:, 0] % 2} for ids in inputs]


def bits(model, trained):
    """Copies of what is trained, or of the rest, quantised or not."""
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad == trained]
    return {name: copy.deepcopy(param.detach()) for name, param in named}


def assert_trained_as(ours, theirs, before):
    trained = bits(ours, True)
    assert {name.rpartition("lora_")[2][:1] for name in trained if "lora_" in name} == {"A", "B"}
    torch.testing.assert_close(trained, bits(theirs, True), **CLOSE)
    assert all(not torch.equal(value, before["trained"][name]) for name, value in trained.items())
    frozen = bits(ours, False)
    assert len(frozen) > 10
    for name, value in frozen.items():
        assert torch.equal(
            *(
                torch.as_tensor(one.dequantize() if hasattr(one, "dequantize") else one)
                for one in (value, before["frozen"][name])
            )
        )


def before_of(model):
    return {"trained": bits(model, True), "frozen": bits(model, False)}


def loop(model, optimizer, clip):
    norms = []
    for batch in batches():
        model(**batch).loss.backward()
        norms.append(clip())
        optimizer.step()
        norms[-1] = optimizer.stats.grad_norm.item() if norms[-1] is None else norms[-1].item()
        optimizer.zero_grad()
    return norms


def test_wrapped_optimizer_of_all_parameters_trains_the_adapter_alone(kind):
    theirs, ours = adapted(kind), adapted(kind)
    before = before_of(ours)
    plain = torch.optim.AdamW(theirs.parameters(), lr=1e-2)
    expected = loop(theirs, plain, lambda: nn.utils.clip_grad_norm_(theirs.parameters(), CLIP))
    wrapped = gradops.wrap(torch.optim.AdamW(ours.named_parameters(), lr=1e-2), max_norm=CLIP)
    assert loop(ours, wrapped, lambda: None) == pytest.approx(expected, rel=1e-3)
    assert_trained_as(ours, theirs, before)
    assert len(wrapped.state) == len(before["trained"])


def accelerated(model, cls):
    accelerator = cls(cpu=True)
    trained = [param for param in model.parameters() if param.requires_grad]
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(trained, lr=0.1, momentum=0.9))
    norms = []
    for batch in batches():
        accelerator.backward(model(**batch).loss)
        norms.append(float(accelerator.clip_grad_norm_(model.parameters(), CLIP)))
        optimizer.step()
        optimizer.zero_grad()
    return optimizer, norms


@pytest.mark.usefixtures("fresh_states")
def test_accelerate_trains_the_adapter_and_clips_in_the_step(kind):
    theirs, ours = adapted(kind), adapted(kind)
    before = before_of(ours)
    _, expected = accelerated(theirs, accelerate.Accelerator)
    optimizer, norms = accelerated(ours, ga.Accelerator)
    assert norms == pytest.approx(expected, rel=1e-3)
    assert optimizer.stats.clip_coef.item() == pytest.approx(CLIP / norms[-1], rel=1e-3)
    assert_trained_as(ours, theirs, before)


DATA = {"train_dataset": [{name: value[0] for name, value in batch.items()} for batch in batches(24)]}


@pytest.mark.parametrize(("kind", "optim"), [*((kind, "adamw_torch") for kind in BASES), ("int8 by hand", "sgd")])
def test_trainer_trains_and_logs_the_adapter_as_transformers_does(train, kind, optim):
    theirs, ours = adapted(kind), adapted(kind)
    before = before_of(ours)
    runs = [
        train(cls, model, optim=optim, max_grad_norm=CLIP, extra=DATA)
        for cls, model in ((transformers.Trainer, theirs), (gt.Trainer, ours))
    ]
    for name in ("loss", "grad_norm", "learning_rate"):
        expected, norms = (logged(trainer, name) for trainer in runs)
        assert norms == pytest.approx(expected, rel=1e-3)
    assert int(runs[1].optimizer.stats.steps_taken) == 6
    assert_trained_as(ours, theirs, before)


def test_adapter_is_saved_loaded_and_resumed(train, kind, tmp_path):
    options = {"num_train_epochs": 2, "save_strategy": "epoch", "max_grad_norm": CLIP, "extra": DATA}
    whole = adapted(kind)
    train(gt.Trainer, whole, **options)
    loaded = peft.PeftModel.from_pretrained(base(kind), tmp_path / "checkpoint-12").eval()
    batch = batches(1)[0]
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, whole.eval()(**batch).logits, **CLOSE)
    rest = adapted(kind)
    train(gt.Trainer, rest, resume=str(tmp_path / "checkpoint-6"), **options)
    for name, value in bits(rest, True).items():
        assert torch.equal(value, dict(whole.named_parameters())[name])


def test_averaged_adapter_is_evaluated_and_saved(train, tmp_path):
    extra = {**DATA, "eval_dataset": DATA["train_dataset"], "settings": {"ema": gradops.WeightEma(0.5)}}
    trainer = train(gt.Trainer, adapted("int8 by hand"), max_grad_norm=CLIP, extra=extra)
    averaged = trainer.evaluate()["eval_loss"]
    trainer.save_model(str(tmp_path / "averaged"))
    loaded = peft.PeftModel.from_pretrained(base("int8 by hand"), tmp_path / "averaged", is_trainable=True)
    extra.pop("settings")
    plain = train(gt.Trainer, loaded, extra=extra, max_steps=1, learning_rate=0.0)
    assert plain.evaluate()["eval_loss"] == pytest.approx(averaged, rel=1e-5)
