from __future__ import annotations

import struct

import pytest

from fttt.judge.syscalls import compile_filter


@pytest.mark.parametrize("counted", [True, False])
def test_the_filter_is_a_program_that_refuses_by_default(counted: bool) -> None:
    program = compile_filter(counted=counted)
    assert len(program) % 8 == 0
    assert len(program) // 8 < 4096, "the kernel's limit"
    returns = {
        struct.unpack("=HBBI", program[at : at + 8])[3]
        for at in range(0, len(program), 8)
        if struct.unpack("=HBBI", program[at : at + 8])[0] == 0x06
    }
    allow, errno_eperm, errno_enosys = 0x7FFF0000, 0x00050001, 0x00050026
    assert {allow, errno_eperm, errno_enosys} <= returns
