"""Which part of the model an instruction serves: its phase and its line of this project.

Compilers drop the origin of what they insert themselves, as gathers; then it is that of whoever uses the result.
"""

from __future__ import annotations

import collections

from chameleon_jax.compile_report.hlo import Computation, Instruction, Module

_STEPS = 8  # uses of uses that are looked through


class Causes:
    """`of` says the cause of an instruction in a few words, as in `backward, layers.py:175 of transformer.py:340`."""

    def __init__(self, module: Module):
        self._module = module
        self._users: dict[str, dict[str, list[Instruction]]] = {}
        every = (one for computation in module.computations.values() for one in computation.instructions.values())
        self._has_phases = any("jvp(" in one.operation for one in every)

    def of(self, computation: Computation, instruction: Instruction) -> str:
        queue, seen = collections.deque([(instruction, 0)]), {instruction.name}
        while queue:
            one, steps = queue.popleft()
            if lines := self._module.source(one):
                return self._phase(one, ", ") + " of ".join(lines)
            if steps < _STEPS:
                for user in self._users_of(computation).get(one.name, []):
                    if user.name not in seen and (user.opcode != "while" and not user.is_root):
                        seen.add(user.name)
                        queue.append((user, steps + 1))
        return self._phase(instruction, "") or "unknown"

    def _phase(self, instruction: Instruction, end: str) -> str:
        return phase(instruction.operation) + end if self._has_phases and instruction.operation else ""

    def _users_of(self, computation: Computation) -> dict[str, list[Instruction]]:
        if computation.name not in self._users:
            users: dict[str, list[Instruction]] = collections.defaultdict(list)
            for instruction in computation.instructions.values():
                for operand in instruction.operands:
                    users[operand].append(instruction)
            self._users[computation.name] = users
        return self._users[computation.name]


def phase(operation: str) -> str:
    """Of a training step: forward, recomputed, backward or update."""
    if "rematted_computation" in operation:
        return "recomputed"
    if "transpose(" in operation:
        return "backward"
    if "jvp(" in operation:
        return "forward"
    return "update"
