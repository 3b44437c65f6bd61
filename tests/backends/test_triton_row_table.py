"""The numbers that Triton's kernels read of the rows: those of a table made anew, which is made only if need be."""

import pytest
import torch

pytest.importorskip("triton", minversion="3.3")

from gradops.backends.call import Row
from gradops.backends.checks import DTYPES
from gradops.backends.known_row import KnownRow
from gradops.backends.triton import row_table, rules
from gradops.backends.triton.row_table import GroupForm, RowTable
from gradops.optim.adam import RULE

GROUP = {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False}
CHUNK = row_table.CHUNK


class Rows:
    """Three parameters in two groups, as a plan knows them."""

    def __init__(self):
        self.params = [torch.zeros(8, 16), torch.zeros(CHUNK + 5), torch.zeros(16, 8).t()]
        self.groups = [dict(GROUP), dict(GROUP)]
        self.known = [KnownRow(Row(p, "", i // 2), p.device, DTYPES, RULE) for i, p in enumerate(self.params)]
        self.states = [self.state_of(param) for param in self.params]
        for param in self.params:
            param.grad = torch.zeros_like(param)
        for known in self.known:
            known.link_param()

    @staticmethod
    def state_of(param, dtype=torch.float32):
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        return {"step": torch.zeros(()), **{name: torch.zeros_like(param, dtype=dtype) for name in names}}

    def given_to(self, table):
        for known, state in zip(self.known, self.states, strict=True):
            known.follow()
            if known.row.grad is not None and not known.state_is(state):
                known.bind_state(state)
        groups = [GroupForm.of(group, RULE, rules.load(RULE)) for group in self.groups]
        table.follow([known.row for known in self.known], groups)
        return table

    def set_grad(self, index, grad):
        self.params[index].grad = grad


CHANGES = {
    "nothing": lambda rows: None,
    "a gradient moves": lambda rows: rows.set_grad(0, torch.zeros(8, 16)),
    "a gradient moves off 16 bytes": lambda rows: rows.set_grad(1, torch.zeros(CHUNK + 6)[1:]),
    "a gradient is strided": lambda rows: rows.set_grad(0, torch.zeros(16, 8).t()),
    "a gradient of another dtype": lambda rows: setattr(rows.params[1].grad, "data", torch.zeros(CHUNK + 5).bfloat16()),
    "no gradient": lambda rows: rows.set_grad(2, None),
    "another state": lambda rows: rows.states.__setitem__(0, rows.state_of(rows.params[0])),
    "moments of another dtype": lambda rows: rows.states.__setitem__(1, rows.state_of(rows.params[1], torch.bfloat16)),
    "a parameter moves": lambda rows: setattr(rows.params[2], "data", torch.zeros(16, 8).t()),
    "another variant": lambda rows: rows.groups[0].update(amsgrad=True),
    "a step elsewhere": lambda rows: setattr(rows.states[0]["step"], "data", torch.ones(())),
}


@pytest.mark.parametrize("second", CHANGES)
@pytest.mark.parametrize("first", CHANGES)
def test_after_any_change_the_table_is_as_one_made_anew(first, second):
    rows, table = Rows(), RowTable()
    rows.given_to(table)
    for change in (first, second):
        CHANGES[change](rows)
        anew = rows.given_to(RowTable())
        assert vars(rows.given_to(table)) == vars(anew)


def test_another_size_places_every_row_anew():
    rows, table = Rows(), RowTable()
    chunks = rows.given_to(table).rows_of_chunks
    rows.params[0].grad = None
    rows.params[0].data = torch.zeros(3 * CHUNK)
    rows.states[0], rows.params[0].grad = Rows.state_of(rows.params[0]), torch.zeros(3 * CHUNK)
    assert vars(rows.given_to(table)) == vars(rows.given_to(RowTable()))
    assert (chunks, table.rows_of_chunks) == ([0, 1, 1, 2], [0, 0, 0, 1, 1, 2])


def test_rows_are_linked_only_where_more_than_a_gradient_moved(monkeypatch):
    rows, table, linked = Rows(), RowTable(), []
    rows.given_to(table)
    link = row_table.linked
    monkeypatch.setattr(row_table, "linked", lambda row, *others: linked.append(row) or link(row, *others))
    words = table.words
    assert rows.given_to(table).words is words
    CHANGES["a gradient moves"](rows)
    assert rows.given_to(table).words is not words
    assert not linked
    CHANGES["another state"](rows)
    rows.given_to(table)
    assert linked == [rows.known[0].row]
