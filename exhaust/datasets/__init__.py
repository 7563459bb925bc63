"""What can be asked for; adding a dataset means copying the nearest neighbour."""

from exhaust.datasets.private import PRIVATE
from exhaust.datasets.response import RESPONSE
from exhaust.datasets.selection import Dataset

DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in (RESPONSE, PRIVATE)}
