from rmu_exp.api import Unlearned as Unlearned
from rmu_exp.api import attack as attack
from rmu_exp.api import evaluate as evaluate
from rmu_exp.api import load as load
from rmu_exp.api import unlearn as unlearn

__version__: str
