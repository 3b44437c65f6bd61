"""Runs a gradops optimizer beside the oracle and compares everything after each step."""

import math

import tolerances as tol
import torch
from rules import Step, reference_of, table_of

import gradops
from gradops.reference import Reference
from gradops.reference.guard import GuardState
from gradops.reference.update import ema_decay

HALF_ULP = {torch.bfloat16: (2.0**-7, 2.0**-133), torch.float16: (2.0**-10, 2.0**-24)}


def params_of(optimizer):
    return [param for group in optimizer.param_groups for param in group["params"]]


def snapshot(optimizer):
    """Copies of everything a step may change, for bitwise comparison."""
    params = params_of(optimizer)
    states = [
        {key: value.clone() for key, value in optimizer.state.get(param, {}).items() if torch.is_tensor(value)}
        for param in params
    ]
    return [param.detach().clone() for param in params], states


def assert_bitwise(actual, expected):
    """Snapshots are equal bit for bit; state that does not exist yet equals zeros."""
    for mine, theirs in zip(actual[0], expected[0], strict=True):
        assert_same_bits(mine, theirs)
    for mine, theirs in zip(actual[1], expected[1], strict=True):
        for key in mine.keys() | theirs.keys():
            value = mine.get(key, theirs.get(key))
            assert_same_bits(mine.get(key, torch.zeros_like(value)), theirs.get(key, torch.zeros_like(value)), key)


def assert_same_bits(actual, expected, what=""):
    assert actual.dtype == expected.dtype, what
    assert actual.shape == expected.shape, what
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    assert same.all(), f"{what}: {(~same).sum()} of {same.numel()} elements differ"


def assert_close(actual, expected, tolerance, magnitude=0.0, what=""):
    actual, expected = actual.detach().double().cpu(), expected.double().cpu()
    allowed = tolerance.rtol * expected.abs() + tolerance.atol * magnitude + 1e-38
    error = (actual - expected).abs()
    wrong = ~((error <= allowed) | (actual == expected) | (actual.isnan() & expected.isnan()))
    worst = (error / allowed).nan_to_num(math.inf)[wrong].max() if wrong.any() else 0
    assert not wrong.any(), f"{what}: {wrong.sum()} of {wrong.numel()} differ, by up to {worst:.3g} times the tolerance"


def assert_scalar(actual, expected, tolerance, what):
    assert_close(torch.as_tensor(actual), torch.tensor(expected).float(), tolerance, what=what)


def assert_rounded(actual, expected, exact, tolerance, magnitude, what):
    """What is stored in half precision is as near the exact value as its right rounding, to float32's tolerance.

    Either of two values may be stored of what lies between them, and steps by a round number put many there.
    """
    kind = torch.finfo(actual.dtype)
    beyond = kind.max / (1.0 - kind.eps / 2.0)  # the power of two that stands for infinity
    actual, expected, exact = (
        values.detach().double().cpu().nan_to_num(nan=math.nan, posinf=beyond, neginf=-beyond).clamp(-beyond, beyond)
        for values in (actual, expected, exact)
    )
    right = (expected - exact).abs()
    allowed = right + tolerance.rtol * exact.abs() + tolerance.atol * magnitude + 1e-38
    wrong = ~(((actual - exact).abs() <= allowed) | (actual.isnan() & expected.isnan()))
    assert not wrong.any(), f"{what}: {wrong.sum()} of {wrong.numel()} are not what the exact value rounds to"


def assert_stored(actual, expected, exact, tolerance, magnitude, what):
    """`exact` is what was rounded to `expected` where that is of half precision."""
    if actual.dtype == torch.float32:
        assert_close(actual, expected, tolerance, magnitude, what)
    else:
        assert_rounded(actual, expected, exact, tolerance, magnitude, what)


def policy(value):
    """Numbers stand for policies at gradops' door, but not at the oracle's."""
    return gradops.RelativeStepCap(value) if isinstance(value, float) else value


class Watched:
    """The oracle's rule, which keeps what each of its updates got (gradient, moments before, factor of the gradient)
    and what it gave before that was rounded to what stores it (weights, moments)."""

    def __init__(self, rule):
        self.rule, self.got, self.gave, self.factor = rule, {}, {}, 1.0
        if hasattr(rule, "grad_factor"):
            self.grad_factor = self.keep_factor

    def __getattr__(self, name):
        return getattr(self.rule, name)

    def keep_factor(self, *args):
        self.factor = self.rule.grad_factor(*args)
        return self.factor

    def update(self, weight, grad, moments, *args):
        before = {name: moment.double() for name, moment in moments.items()}
        exact = {name: moment.clone() for name, moment in before.items()}
        updated = self.rule.update(weight, grad, exact, *args)
        self.got[id(moments)], self.gave[id(moments)] = (grad, before, self.factor), (updated, exact)
        self.rule.update(weight, grad, moments, *args)
        return updated


class Beside:
    """Steps both, compares, then gives the oracle the optimizer's bits, so that every comparison is of one step."""

    def __init__(self, optimizer, **settings):
        self.optimizer = optimizer
        if settings.get("loss_scale") == "dynamic":
            settings["loss_scale"] = gradops.DynamicLossScale()
        settings.pop("track_updates", None)  # the oracle always does
        settings.pop("backend", None)
        settings["max_relative_step"] = policy(settings.get("max_relative_step"))
        self.rule, self.table = optimizer.rule, table_of(type(optimizer))
        self.scalars = [scalar.name for scalar in self.rule.scalars]
        self.watched = Watched(reference_of(type(optimizer)))
        self.oracle = Reference(optimizer.param_groups, rule=self.watched, **settings)
        self.moments_before = [dict.fromkeys(self.rule.moment_names, 0.0)] * len(
            self.oracle.params
        )  # largest of each parameter's moments before the step
        self.powers = settings.get("norm_type", 2.0) not in (1.0, 2.0, math.inf)

    def step(self, grads):
        optimizer, oracle = self.optimizer, self.oracle
        params = params_of(optimizer)
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        for mine, theirs in zip(oracle.groups, optimizer.param_groups, strict=True):
            mine.update({key: value for key, value in theirs.items() if key != "params"})
        if optimizer.loss_scale is not None:
            optimizer.scale(torch.zeros(()))
        taken = oracle.stats.steps_taken
        stored = [values.clone() for values in oracle.updated]
        kept = [None if grad is None else grad.clone() for grad in grads]
        self.moments_before = [
            {
                name: 0.0 if state is None or not state[name].numel() else state[name].abs().max().item()
                for name in self.rule.moment_names
            }
            for state in oracle.states
        ]
        groups = [group for group in oracle.groups for _ in group["params"]]
        known = zip(oracle.states, oracle.params, groups, strict=True)
        states = [state or oracle.new_state(param, group) for state, param, group in known]
        self.averages_before = {row: state.ema.clone() for row, state in enumerate(states) if state.ema is not None}
        optimizer.step()
        self.watched.got.clear()
        self.watched.gave.clear()
        stats = oracle.step(kept)
        if any(grad is not None for grad in grads):
            # Of the optimizer's own bits: a weight that is rounded apart has moved by another ulp.
            now = [optimizer.state.get(param, {}).get("master", param.detach()) for param in params]
            rows = oracle.update_rows(stored, now, kept, skip=stats.steps_taken == taken)
            stats.update_ratio, stats.param_rms = rows
        for param, grad, before in zip(params, grads, kept, strict=True):
            assert param.grad is grad
            assert grad is None or torch.equal(grad.nan_to_num(7.0), before.nan_to_num(7.0)), "a gradient was written"
        self.compare(stats)
        self.synchronise()
        return stats

    def compare(self, stats):
        self.compare_stats(stats)
        skipped = stats.found_inf or (stats.guarded and self.oracle.guard.skips)
        groups = [group for group in self.optimizer.param_groups for _ in group["params"]]
        for row, (param, group) in enumerate(zip(params_of(self.optimizer), groups, strict=True)):
            expected, mine = self.oracle.params[row], self.optimizer.state.get(param, {})
            state = self.oracle.states[row] or self.oracle.new_state(param, group)
            assert int(mine.get("step", 0)) == state.step
            largest = min(stats.grads.abs_max[row], self.oracle.clip_value or math.inf)
            largest *= 1.0 if self.oracle.agc else stats.clip_coef
            l2 = bool(group["weight_decay"] and not self.rule.decouples(group) and expected.numel())
            largest += group["weight_decay"] * expected.abs().max().item() if l2 else 0.0
            l1 = group.get("l1", self.oracle.l1)
            largest += l1
            got = self.watched.got.get(id(state.moments), (None, {}, 1.0))
            step = Step(state, group, largest, self.moments_before[row], bool(l2 or l1), self.powers, *got)
            scale = torch.full(expected.shape, float(group["lr"]), dtype=torch.float64) * self.table.scale(step)
            weights, moments = self.watched.gave.get(id(state.moments), (None, {}))
            still = skipped or weights is None
            self.compare_weights(row, param, mine, state, still, weights, scale)
            self.compare_scalars(row, mine, state, still)
            self.compare_average(row, mine, state, still)
            for key in self.rule.moment_names:
                if key not in mine:
                    continue
                assert mine[key].dtype == self.oracle.moments_dtype
                what = f"{key} of param {row}"
                if still:
                    assert_same_bits(mine[key], state[key], what)
                else:
                    assert_stored(mine[key], state[key], moments[key], *self.table.moment(step, key), what)

    def compare_scalars(self, row, mine, state, still):
        for key in self.scalars if mine else ():
            tolerance = tol.Tolerance(0.0, 0.0, "what is not updated changes no bit") if still else tol.SCALAR
            assert_close(mine[key], state[key], tolerance, what=f"{key} of param {row}")

    def compare_weights(self, row, param, mine, state, still, exact, scale):
        actual, expected = param.detach(), self.oracle.params[row]
        if mine:
            assert ("master" in mine) == (state.master is not None)
        if mine:
            assert ("compensation" in mine) == (state.compensation is not None)
        if "compensation" in mine and not still:
            assert_rounded(actual, expected, exact, tol.PARAM, scale, f"param {row}")
            self.compare_compensated(actual, mine["compensation"], expected, state.compensation, scale, f"param {row}")
            return
        if "compensation" in mine:
            assert_same_bits(mine["compensation"], state.compensation, f"compensation of param {row}")
        if "master" in mine:
            assert_same_bits(actual, mine["master"].to(param.dtype), f"param {row} is not its master, rounded")
            actual, expected = mine["master"], state.master
        if still:
            assert_same_bits(actual, expected, f"param {row}")
        else:
            assert_stored(actual, expected, exact, tol.PARAM, scale, f"param {row}")

    def compare_average(self, row, mine, state, still):
        """Of the optimizer's own weights, which may differ from the oracle's by more than an average's rounding."""
        if mine:
            assert ("ema" in mine) == (state.ema is not None)
        if "ema" not in mine:
            return
        before = self.averages_before.get(row)
        if still:
            assert_same_bits(mine["ema"], state.ema, f"average of param {row}")
            return
        decay = ema_decay(self.oracle.ema, state.step)
        stored = mine.get("master", params_of(self.optimizer)[row].detach()).double()
        expected = before if decay is None else decay * before.double() + (1.0 - decay) * stored
        largest = torch.maximum(before.double().abs(), stored.abs())
        assert_close(mine["ema"], expected, tol.AVERAGE, largest, f"average of param {row}")
        if decay is None:
            assert_same_bits(mine["ema"], before, f"average of param {row}")

    def compare_compensated(self, actual, compensation, expected, expected_compensation, scale, what):
        """Their sum has twice the parameter's digits. Where it lies between two values either may be the parameter."""
        ulp, smallest = HALF_ULP[actual.dtype]
        kept = actual.float() + 0.5 * compensation.float()
        assert_same_bits(kept.to(actual.dtype), actual, f"{what} keeps more than rounding took off it")
        sums = (actual.double() + compensation.double(), expected.double() + expected_compensation.double())
        finite = sums[1].isfinite()
        tolerance = tol.Tolerance(ulp**2 + tol.PARAM.rtol, tol.PARAM.atol, "")
        scale = (scale + smallest / tol.PARAM.atol)[finite]
        assert_close(sums[0][finite], sums[1][finite], tolerance, scale, f"sum of {what}")

    def compare_stats(self, expected):
        stats, oracle = self.optimizer.stats, self.oracle
        norm = tol.POWER_NORM if self.powers else tol.NORM
        exact = tol.Tolerance(0.0, 0.0, "no rounding is left to chance")
        assert_scalar(stats.grad_norm, expected.grads.grad_norm, norm, "grad_norm")
        assert_scalar(stats.norms, expected.grads.norms, norm, "norms")
        assert_scalar(stats.abs_max, expected.grads.abs_max, exact, "abs_max")
        assert stats.nonfinite.tolist() == expected.grads.nonfinite
        assert stats.capped.tolist() == expected.capped
        clip_coef = tol.POWER_CLIP_COEF if self.powers else tol.CLIP_COEF
        assert_scalar(stats.clip_coef, expected.clip_coef, clip_coef, "clip_coef")
        assert bool(stats.found_inf) == expected.found_inf
        assert float(stats.loss_scale) == expected.loss_scale
        assert (int(stats.steps_taken), int(stats.steps_skipped)) == (expected.steps_taken, expected.steps_skipped)
        assert bool(stats.guarded) == expected.guarded
        assert_scalar(stats.lr_factor, expected.lr_factor, exact, "lr_factor")
        state, known = oracle.guard_state, [value.item() for value in self.optimizer.engine.buffers.guard]
        for value, name in zip(known, ("lr_factor", "usual_norm", "deviation", "norms_seen"), strict=True):
            tolerance = tol.GUARD if name == "deviation" else norm
            assert_close(torch.tensor(value), torch.tensor(getattr(state, name)), tolerance, state.usual_norm, name)
        if self.optimizer.track_updates:
            assert_scalar(stats.update_ratio, expected.update_ratio, tol.UPDATE_RATIO, "update_ratio")
            assert_scalar(stats.param_rms, expected.param_rms, tol.NORM, "param_rms")
        if oracle.policy is not None:
            saved = self.optimizer.state_dict()["param_groups"][0]
            assert saved["gradops_loss_scale"] == oracle.scale
            assert saved["gradops_growth_tracker"] == oracle.growth_tracker

    def synchronise(self):
        self.oracle.guard_state = GuardState(*(value.item() for value in self.optimizer.engine.buffers.guard))
        for row, param in enumerate(params_of(self.optimizer)):
            self.oracle.params[row].copy_(param.detach())
            state = self.oracle.states[row]
            for key in (*self.rule.moment_names, *self.scalars, "master", "compensation", "ema") if state else ():
                if key in self.optimizer.state[param]:
                    state[key].copy_(self.optimizer.state[param][key])
