"""The gate of compiled kernels, and that it can fail.

Kernels are compiled in processes of their own: here they are interpreted.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import triton
from megatron_lite.kernels import rms_norm
from megatron_lite.kernels.benchmarks import gate, timing
from megatron_lite.kernels.benchmarks.compiled import Facts, compiled, nvidia_occupancy
from megatron_lite.kernels.benchmarks.machine_code import loops_of, read_amd, read_nvidia, waits_for_each_product
from megatron_lite.kernels.benchmarks.specimen import USUAL, Launched, Specimen

TESTS = Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


def test_every_kernel_is_what_the_gate_asks_for():
    result = run("-m", "megatron_lite.kernels.benchmarks", "--gate")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("0 faults\n")


@pytest.mark.nightly
def test_every_kernel_is_what_the_gate_asks_for_at_other_models_shapes():
    result = run("-m", "megatron_lite.kernels.benchmarks", "--gate", "--all-shapes")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("0 faults\n")


@pytest.fixture(scope="module")
def probed():
    result = run("-m", "support.kernels.probe")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module", params=["sm_90", "gfx942"])
def counted(request, probed):
    name = request.param
    return {key.removeprefix(f"{name} "): value for key, value in probed["counted"].items() if key.startswith(name)}


def test_straight_code_runs_each_instruction_once(counted):
    assert counted["straight"] == counted["straight, static"]


def test_a_loops_instructions_grow_linearly_with_its_turns(counted):
    turn = counted["repeat 2"] - counted["repeat 1"]
    assert turn > 20  # a load, a product, a sum over threads
    assert counted["repeat 10"] == counted["repeat 1"] + 9 * turn


def test_an_unrolled_loop_passes_as_many_times_less_as_it_holds_turns(counted):
    """A turn is a load, four additions and what finds the place; taken for one turn a pass would count 64 times."""
    a_turn = (counted["fixed 8"] - counted["fixed 4"]) / 4
    assert 5 <= a_turn <= 16
    assert 64 * 5 <= counted["unrolled"] <= 64 * 16
    assert counted["taken for one turn"] > 3 * counted["unrolled"]


def test_an_inner_loop_runs_as_often_as_the_outer_turns(counted):
    once = counted["nested 1 3"] - counted["nested 1 2"]
    assert once > 20
    assert counted["nested 2 3"] - counted["nested 2 2"] == pytest.approx(2 * once)
    assert counted["nested 2 5"] - counted["nested 2 2"] == pytest.approx(6 * once)


def test_a_loop_that_the_specimen_does_not_mention_is_an_error(probed):
    assert "does not say how many turns `for turn in range(turns):` takes" in probed["undeclared"]


@pytest.mark.parametrize(
    ("kernel", "fact", "what"),
    [
        ("spilling", "spills", "must be none"),
        ("double", "fp64", "must be none"),
        ("unaligned", "narrow", "probe.py"),
        ("without tensor cores", "tensor_core", "no instruction"),
    ],
)
def test_a_bad_kernel_is_named_with_its_target_and_fact(probed, kernel, fact, what):
    assert any(line.startswith(f"{kernel}, sm_90, {fact}: ") and what in line for line in probed["faults"][kernel]), (
        probed["faults"]
    )


def test_a_good_kernel_has_no_fault(probed):
    assert probed["faults"]["good"] == []


def test_a_recorded_launch_is_that_of_the_target(probed):
    recorded = probed["recorded"]
    # A row of 64 in bfloat16 is 128 bytes: one warp.
    launches = {target: rms_norm.FORWARD[target].options | {"num_warps": 1} for target in USUAL}
    assert recorded["options"] == launches
    assert (recorded["programs"], recorded["x"], recorded["COLUMNS"]) == (4, "*bf16", 64)


def test_a_kernel_that_nobody_described_is_an_error(probed):
    assert probed["recorded"]["error"] == "norm launches ['forward_kernel'], known are ['other']"


def test_arguments_are_specialized_as_tritons_jit_does(probed):
    """Pointers and multiples of 16 are marked, 1 and None are constants, items of tuples alike; 3 and 0.5 neither."""
    found = probed["special"]["sm_90"]
    assert list(found["signature"].values()) == [
        "*bf16", "i32", "i32", "constexpr", "fp32", ["i32", "constexpr", "i32"], "constexpr", "constexpr",
    ]  # fmt: skip
    assert found["constants"] == {"(3,)": 1, "(5, 1)": 1, "(6,)": None, "(7,)": 64}
    marked = [["tt.divisibility", 16]]
    assert found["attributes"] == {"(0,)": marked, "(1,)": marked, "(5, 0)": marked}
    assert probed["special"]["gfx942"]["attributes"]["(0,)"] == [*marked, ["tt.pointer_range", 32]]


@pytest.mark.skipif(not find_spec("liger_kernel"), reason="needs liger-kernel")
def test_liger_takes_the_arguments_of_the_operations_it_is_timed_beside(probed):
    assert sorted(probed["rivals"]) == sorted(timing.liger())


FACTS = Facts(40, 0, 64, 75, 6, 0, (), 0, 0, 0, 200, 10.0)
SPECIMEN = Specimen("norm", "sm_90", Launched(None, {}, {}, 1), 1)


def texts(faults) -> list[str]:
    return list(map(str, faults))


def test_serialized_products_and_a_block_that_does_not_fit_are_faults_whatever_was_committed():
    wrong = replace(FACTS, serialized=2, occupancy=0, shared=300_000)
    assert texts(gate.forbidden(SPECIMEN, wrong)) == [
        "norm, sm_90, occupancy: does not start: 300000 bytes of shared memory",
        "norm, sm_90, serialized: each product waits for the one before in 2 loops",
    ]


def test_five_per_cent_more_than_committed_pass_and_six_do_not():
    assert not gate.regressions(SPECIMEN, replace(FACTS, registers=42, per_element=10.5), FACTS)
    found = texts(gate.regressions(SPECIMEN, replace(FACTS, registers=43, per_element=10.6), FACTS))
    assert found == ["norm, sm_90, registers: 43, committed 40", "norm, sm_90, per_element: 10.6, committed 10.0"]


def test_less_occupancy_than_committed_is_a_fault():
    (fault,) = gate.regressions(SPECIMEN, replace(FACTS, occupancy=62), FACTS)
    assert str(fault) == "norm, sm_90, occupancy: 62%, committed 75%"


def test_one_narrow_access_or_spill_more_than_committed_is_a_fault_whatever_is_waived():
    found = texts(gate.regressions(SPECIMEN, replace(FACTS, narrow=1, spills=2), FACTS))
    assert found == [
        "norm, sm_90, more spills: 2, committed 0",
        "norm, sm_90, more narrow: 1 accesses of less than 128 bits, committed 0",
    ]


def test_specimens_that_are_compiled_alike_are_one(probed):
    """Programs and elements are not in the code; options, the target and whether 16 divides a number are."""
    assert probed["distinct"] == ["a", "d", "e", "f"]


def test_a_peer_of_the_same_name_must_not_be_better():
    peers = {
        "norm of Peer": replace(FACTS, per_element=9.9, occupancy=100),
        "norm_backward of Peer": replace(FACTS, per_element=1.0),
        "norm of Worse": replace(FACTS, per_element=11.0, occupancy=50),
    }
    assert texts(gate.behind(SPECIMEN, FACTS, peers)) == [
        "norm, sm_90, a peer's per_element: 10.0, norm of Peer 9.9",
        "norm, sm_90, a peer's occupancy: 75%, norm of Peer 100%",
    ]


def test_a_kernel_that_is_not_committed_is_a_fault():
    (fault,) = gate.faults_of(SPECIMEN, FACTS, {})
    assert fault.fact == "committed"


def test_facts_of_another_triton_are_not_compared_and_absolute_rules_hold(tmp_path):
    file = tmp_path / "gate.json"
    file.write_text(json.dumps({"1.2.3": {}}))
    committed, why = gate.read_committed(file)
    assert committed is None
    assert "1.2.3" in why and triton.__version__ in why
    assert [fault.fact for fault in gate.faults_of(SPECIMEN, replace(FACTS, spills=2), committed)] == ["spills"]


def test_each_triton_has_facts_of_its_own_and_writing_one_leaves_the_others(tmp_path, monkeypatch):
    file = tmp_path / "gate.json"
    versions = {"3.6.0": FACTS, "3.9.0": replace(FACTS, registers=41)}
    for version in ("3.9.0", "3.6.0"):
        monkeypatch.setattr(triton, "__version__", version)
        gate.write_committed({"sm_90": {"norm": versions[version]}}, file)
    for version, facts in versions.items():
        monkeypatch.setattr(triton, "__version__", version)
        assert gate.read_committed(file) == ({"sm_90": {"norm": facts}}, "")


def test_what_is_written_is_what_is_read_and_absent_peers_are_kept(tmp_path):
    file = tmp_path / "gate.json"
    gate.write_committed({"sm_90": {"norm": FACTS, "norm of Peer": FACTS}}, file)
    gate.write_committed({"sm_90": {"other": replace(FACTS, narrow_at=("a load",))}}, file)
    committed, why = gate.read_committed(file)
    assert why == ""
    assert committed == {"sm_90": {"norm of Peer": FACTS, "other": replace(FACTS, narrow_at=("a load",))}}


def test_a_waiver_moves_a_fault_aside_and_is_a_fault_where_none_needs_it(monkeypatch):
    waiving = replace(SPECIMEN, waived={"spills": "a reason"})
    monkeypatch.setattr(gate, "specimens_of", lambda module: [waiving])
    committed, spilling = {"sm_90": {"norm": FACTS}}, {"sm_90": {"norm": replace(FACTS, spills=1)}}
    wrong, waived = gate.verdict("", spilling, spilling)
    assert not wrong and waived == ["waived: norm, sm_90, spills: 1, must be none (a reason)"]
    (fault,), waived = gate.verdict("", committed, committed)
    assert str(fault) == "norm, sm_90, spills: is waived, and need not be" and not waived


def test_a_waiver_may_be_of_one_target(monkeypatch):
    waived = {"spills on gfx942": "a reason"}
    both = [replace(SPECIMEN, waived=waived), replace(SPECIMEN, waived=waived, target="gfx942")]
    monkeypatch.setattr(gate, "specimens_of", lambda module: both)
    spilling = {target: {"norm": replace(FACTS, spills=1)} for target in ("sm_90", "gfx942")}
    (fault,), (line,) = gate.verdict("", spilling, None)
    assert fault.target == "sm_90" and line.startswith("waived: norm, gfx942")


def test_nothing_is_compiled_where_kernels_are_interpreted():
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"):
        compiled(SPECIMEN)


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "share"),
    # A block of 16 warps: by registers 65536 / (40 x 512) = 3 blocks, 128 leave 1; by shared memory 228 // 101 = 2; 228
    # KB are less than a block of as many takes.
    [
        (32, 228 * 1024, 16, 0),
        (32, 0, 16, 100),
        (40, 0, 16, 75),
        (128, 0, 16, 25),
        (32, 100 * 1024, 16, 50),
        (255, 0, 8, 12),
        (16, 0, 1, 50),
    ],
)
def test_occupancy_is_that_of_the_scarcest_resource(registers, shared, warps, share):
    assert nvidia_occupancy(90, registers, shared, warps) == share


SASS = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @!P0 BRA `(.L_x_1) ;
.L_x_0:
        /*0020*/                   LDG.E.128 R4, [R2.64] ;
        /*0030*/               @P1 BRA `(.L_x_3) ;
.L_x_2:
        /*0040*/               @P2 BRA `(.L_x_0) ;
.L_x_1:
        /*0050*/                   EXIT ;
.L_x_3:
        /*0060*/                   FADD R4, R4, R5 ;
        /*0070*/                   BRA `(.L_x_2) ;
        /*0080*/                   MOV R6, R7 ;
        /*0090*/               @P3 BRA `(.L_x_2) ;
.L_x_4:
        /*00a0*/                   BRA `(.L_x_4) ;
        /*00b0*/                   NOP ;
"""


def test_a_loop_has_what_lies_behind_the_kernels_end_and_a_jump_back_into_it_is_no_loop():
    code = read_nvidia(SASS)
    (loop,) = loops_of(code)
    names = [code.instructions[index].name for index in sorted(loop.body)]
    assert names == ["LDG.E.128", "BRA", "BRA", "FADD", "BRA"]
    assert len(code) == 10  # without padding


HOPPER = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   HGMMA.64x64x16.F32.BF16 R4, gdesc[UR4], R4 ;
        /*0020*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0030*/                   HGMMA.64x64x16.F32.BF16 R4, gdesc[UR8], R4 ;
        /*0040*/                   {wait}
        /*0050*/               @P2 BRA `(.L_x_0) ;
        /*0060*/                   EXIT ;
"""


@pytest.mark.parametrize(("wait", "serialized"), [("MOV R6, R7 ;", False), ("WARPGROUP.DEPBAR.LE gsb0, 0x0 ;", True)])
def test_products_are_serialized_where_more_than_half_are_waited_for(wait, serialized):
    code = read_nvidia(HOPPER.replace("{wait}", wait))
    (loop,) = loops_of(code)
    assert waits_for_each_product(code, loop) is serialized


GCN = """
	.file	1 "/folder" "kernel.py"
	s_mov_b32 s0, 0
	s_branch .LBB0_2
.LBB0_1:
	.loc	1 7 9                           ; kernel.py:7:9 @[ kernel.py:12:5 ]
	v_add_f32_e32 v0, v0, v1
	s_cbranch_scc1 .LBB0_3
.LBB0_2:
	s_cbranch_vccnz .LBB0_1
.LBB0_3:
	s_endpgm
"""


def test_a_loop_may_go_back_to_its_head_by_falling_into_it():
    code = read_amd(GCN)
    (loop,) = loops_of(code)
    assert sorted(loop.body) == [2, 3, 4]
    assert code.instructions[2].places == (("/folder/kernel.py", 7), ("/folder/kernel.py", 12))
