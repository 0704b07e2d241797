"""Every shipped tile configuration compiles for the GPUs that this machine does not have.

What is asserted is what a GPU would otherwise tell too late: registers spilled to memory, more
shared memory than a block may have, narrow loads, the tensor cores left unused. Each configuration
is compiled in its plainest form (top-1) and in its heaviest (top-8, log-sum-exp, softcap,
own tokens).
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import triton
from kernel_compiler import TARGETS, compile_offline, resources

from fastmtp_kernels import draft_tiles, own_tokens, triton_draft
from fastmtp_kernels.draft_logits import MAX_TOP_K, OWN_TOKENS
from fastmtp_kernels.tile_configs import TileConfig, choose_config, tile_configs

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        triton.knobs.runtime.interpret, reason="TRITON_INTERPRET=1 replaces the compiler"
    ),
]

SHARED_LIMIT = {"cuda": 101_376, "hip": 65_536}
"""Bytes a block may have: sm_86 and sm_89, which run the sm_80 code, grant 99 KB; AMD 64 KB."""

SCORE_TYPES = {
    "head_rows": "*i32",
    "token_ids": "*i32",
    "slot_bits": "*i32",
    "tile_bits": "*i32",
    "languages": "*i64",
    "tile_keys": "*i64",
    "tile_lse": "*fp32",
    "own_ids": "*i32",
    "request_slots": "*i64",
    "batch": "i32",
    "tiles": "i32",
    "hidden_stride": "i32",
    "head_stride": "i32",
    "live_stride": "i32",
    "num_languages": "i32",
    "first_id": "i32",
    "end_id": "i32",
    "scale": "fp32",
    "softcap": "fp32",
}
REDUCE_TYPES = {
    "tile_keys": "*i64",
    "tile_lse": "*fp32",
    "tile_bits": "*i32",
    "languages": "*i64",
    "ids": "*i64",
    "scores": "*fp32",
    "keys": "*i64",
    "lse": "*fp32",
    "fallback_id": "i32",
    "tiles": "i32",
    "key_row_stride": "i32",
    "key_tile_stride": "i32",
    "lse_row_stride": "i32",
    "lse_tile_stride": "i32",
}


class Form(NamedTuple):
    top_k: int = 1
    log_sum_exp: bool = False
    softcap: bool = False
    packed: bool = False
    own: int = 0


PLAINEST = Form()
HEAVIEST = Form(top_k=MAX_TOP_K, log_sum_exp=True, softcap=True, own=OWN_TOKENS[-1])


def compile_score(
    target: str, dtype: str, config: TileConfig, form: Form = PLAINEST, size: int = 4096
):
    constants = {
        "D": size,
        "TOP_K": form.top_k,
        "LOG_SUM_EXP": form.log_sum_exp,
        "SOFTCAP": form.softcap,
        "PACKED": form.packed,
        "OWN": form.own,
        "UPCAST": False,
        "BLOCK_B": config.block_b,
        "BLOCK_V": config.block_v,
        "BLOCK_K": config.block_k,
    }
    types = {**dict.fromkeys(("hidden", "head", "live_head"), f"*{dtype}"), **SCORE_TYPES}
    strides = {"hidden_stride", "head_stride", "live_stride"}
    aligned = strides if size % 16 == 0 else set()
    return compile_offline(
        draft_tiles.score_tiles,
        TARGETS[target],
        types,
        constants,
        config.num_warps,
        config.num_stages,
        aligned,
    )


def assert_fits(target: str, compiled) -> None:
    used = resources(compiled)
    assert used.spilled == 0
    assert used.shared_bytes <= SHARED_LIMIT[TARGETS[target].backend]


SHIPPED = [
    pytest.param(
        *(target, dtype, config),
        id=f"{target}-{dtype}-{'x'.join(map(str, config))}",
        # Heads are served in 16 bits.
        marks=[pytest.mark.slow] if dtype == "fp32" else [],
    )
    for target, gpu in TARGETS.items()
    for dtype, itemsize in (("bf16", 2), ("fp32", 4))
    for config in tile_configs(gpu.backend, itemsize)
]


# The heaviest form spills first.
@pytest.mark.parametrize(
    "form",
    [
        pytest.param(HEAVIEST, id="heaviest"),
        pytest.param(PLAINEST, id="plainest", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(("target", "dtype", "config"), SHIPPED)
def test_every_shipped_configuration_fits(target: str, dtype: str, config: TileConfig, form: Form):
    assert_fits(target, compile_score(target, dtype, config, form))


@pytest.mark.parametrize(("size", "batch"), [(576, 1), (577, 1), (577, 64), (7168, 64)])
@pytest.mark.parametrize("target", TARGETS)
def test_other_hidden_sizes_fit(target: str, size: int, batch: int):
    config = choose_config(TARGETS[target].backend, 2, batch, 32768, aligned=size % 16 == 0)
    assert_fits(target, compile_score(target, "fp16", config, size=size))


@pytest.mark.parametrize("target", TARGETS)
def test_the_packed_layout_fits(target: str):
    config = choose_config(TARGETS[target].backend, 2, 16, 32768)
    for own in OWN_TOKENS[::3]:
        assert_fits(target, compile_score(target, "bf16", config, Form(packed=True, own=own)))


@pytest.mark.parametrize(
    ("target", "instruction"),
    [("sm_80", "mma.sync"), ("sm_90", "wgmma"), ("sm_100", "tcgen05.mma"), ("gfx942", "v_mfma")],
)
@pytest.mark.parametrize("batch", [1, 32, 64, 256])
@pytest.mark.parametrize("own", OWN_TOKENS[::3])
def test_sums_run_on_tensor_cores_and_head_rows_load_16_bytes(
    target: str, instruction: str, batch: int, own: int
):
    config = choose_config(TARGETS[target].backend, 2, batch, 32768)
    compiled = compile_score(target, "bf16", config, Form(own=own))
    if target == "gfx942":
        code = compiled.asm["amdgcn"]
        assert "dwordx4" in code
    else:
        code = compiled.asm["ptx"]
        copies = [line for line in code.splitlines() if "cp.async.c" in line and "shared" in line]
        assert copies
        assert all(", 0x10," in line for line in copies)
    assert instruction in code


@pytest.mark.parametrize("by_language", [True, False], ids=["tiles", "ranks"])
@pytest.mark.parametrize("form", [PLAINEST, HEAVIEST], ids=["plainest", "heaviest"])
@pytest.mark.parametrize("target", TARGETS)
def test_the_reduction_fits(target: str, form: Form, by_language: bool):
    constants = {
        "TOP_K": form.top_k,
        "LOG_SUM_EXP": form.log_sum_exp,
        "BY_LANGUAGE": by_language,
        "BLOCK": triton_draft.REDUCE_BLOCK,
    }
    compiled = compile_offline(
        draft_tiles.reduce_tiles, TARGETS[target], REDUCE_TYPES, constants, 4, 3, set()
    )
    assert_fits(target, compiled)


REMEMBER_TYPES = {
    "slots": "*i64",
    "token_ids": "*i32",
    "accept_lens": "*i32",
    "members": "*i32",
    "own_ids": "*i32",
    "own_stamps": "*i32",
    "token_stride": "i32",
    "vocab_size": "i32",
    "lists": "i32",
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("width", [1, 8])
def test_remembering_compiles_without_spills(target: str, width: int):
    compiled = compile_offline(
        own_tokens._remember,
        TARGETS[target],
        REMEMBER_TYPES,
        {"WIDTH": width, "NUMBER": OWN_TOKENS[-1]},
        num_warps=1,
        num_stages=1,
        aligned=set(),
    )
    assert resources(compiled).spilled == 0
