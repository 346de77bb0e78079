"""The phantom: synthetic chest radiographs with known findings and exact masks; not for training human readers.

`population` decides who has which findings, `anatomy` draws the chest, `signs` each finding as its radiographic sign,
`render` puts them together and exposes the film, `load` makes a data set of the films.
"""

from deepchest_utils.datasets.phantom.population import sample_population
from deepchest_utils.datasets.phantom.render import MAX_SIZE, Phantom, make_phantom

__all__ = ["MAX_SIZE", "Phantom", "make_phantom", "sample_population"]
