"""What can be asked of a model besides whole new molecules.

Example:
    load("qm9").sample(10, task=Grow(core="core.sdf", attach=0, new_atoms=(2, 4)))
"""

from moldiff.tasks.analogues import Analogues
from moldiff.tasks.bonds import Bonds
from moldiff.tasks.conformers import Conformers
from moldiff.tasks.formula import Formula
from moldiff.tasks.grow import Grow, Link, Pocket, Replace

__all__ = ["Analogues", "Bonds", "Conformers", "Formula", "Grow", "Link", "Pocket", "Replace"]
