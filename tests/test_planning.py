"""Which runs make a stack."""

from nfexp.flows.cost import member_bytes
from nfexp.spec import stack_key
from nfexp.sweep.planning import Machine, budget, plan_stacks


def test_stacks_hold_what_may_train_together(make_spec):
    specs = [make_spec(seed=s, flow__n_flows=f) for s in range(10) for f in (1, 2)] + [make_spec(flow__n_flows=12)]
    stacks = plan_stacks(specs, max_stack=4)
    assert sorted(i for stack in stacks for i in stack) == list(range(21))
    assert all(len({stack_key(specs[i]) for i in stack}) == 1 and len(stack) <= 4 for stack in stacks)
    assert sorted(map(len, stacks)) == [1, 3, 3, 3, 3, 4, 4]
    assert sorted(map(len, plan_stacks(specs[::2][:10], max_stack=32, workers=2))) == [5, 5]


def test_stacks_fit_into_the_memory_there_is(make_spec):
    specs = [make_spec(seed=s, data__n_samples=100 * (s + 1)) for s in range(10)]
    largest = max(map(member_bytes, specs))
    assert max(map(len, plan_stacks(specs, room=3.5 * largest))) == 3
    assert len(plan_stacks(specs, room=largest / 2)) == 10  # one alone is tried, whatever the estimate says
    assert len(plan_stacks(specs, room=2 * largest, max_stack=10)) == 1  # said is said
    cpu = Machine(device="cpu", places=4, free_bytes=10e9)
    gpus = Machine(device="cuda", places=2, free_bytes=10e9)
    assert budget(cpu, 4, None) == 2e9 and budget(cpu, 4, 1.5) == 1.5e9
    assert budget(gpus, 2, None) == 8e9 and budget(gpus, 4, None) == 4e9


def test_a_core_gets_fewer_large_runs_at_a_time_than_small_ones(make_spec):
    small = [make_spec(seed=s) for s in range(64)]
    large = [make_spec(seed=s, flow__hidden_width=512, train__batch_size=100, flow__n_flows=12) for s in range(64)]
    assert max(map(len, plan_stacks(small))) == 32 and max(map(len, plan_stacks(large))) == 4
    assert len(plan_stacks(large, device="cuda")) == 1
