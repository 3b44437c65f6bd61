"""transformers: `gradops.transformers.Trainer` in place of transformers', on a BERT small enough for a CPU."""

import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from gradops.transformers import Trainer

torch.manual_seed(0)
config = BertConfig(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=2
)
tokens = torch.randint(2, 64, (256, 12))
tokens[:, 0] = torch.arange(256) % 2  # the answer: which of the two first tokens is it?
data = [{"input_ids": row, "labels": row[0]} for row in tokens]

arguments = TrainingArguments(
    "trained",
    per_device_train_batch_size=32,
    num_train_epochs=5,
    learning_rate=2e-3,
    max_grad_norm=1.0,
    bf16=True,
    use_cpu=not torch.cuda.is_available(),
    logging_steps=8,
    save_strategy="no",
    report_to=[],
    disable_tqdm=True,
)
trainer = Trainer(BertForSequenceClassification(config), arguments, train_dataset=data)
trainer.train()
stats = trainer.optimizer.stats.cpu()
print(f"steps {stats.steps_taken}, skipped {stats.steps_skipped}, last norm {stats.grad_norm:.3f}")
