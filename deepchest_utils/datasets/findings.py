"""The 14 findings of NIH ChestX-ray14 and what was counted of them: the one place where they are spelled.

Counts are over the official table `Data_Entry_2017_v2020.csv` (112,120 images of 30,805 patients), Wang et al.,
"ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks", CVPR 2017, arXiv 1705.02315.
"""

import numpy as np

# fmt: off
FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)
"""In ChestMNIST's order."""
NUM_FINDINGS = len(FINDINGS)

NIH_IMAGES, NIH_WITHOUT_FINDING = 112_120, 60_361

NIH_IMAGE_COUNTS = dict(zip(FINDINGS, (11_559, 2776, 13_317, 19_894, 5782, 6331, 1431, 5302, 4667, 2303, 2516, 1686, 3385, 227), strict=True))
"""Images that carry the finding."""

NIH_COOCCURRENCE = np.array([
    [11559,   370,  3275,  3264,   739,   590,   262,   774,  1223,   221,   424,   220,   496,    40],
    [  370,  2776,  1063,   587,   102,   108,    41,    49,   169,   127,    44,    52,   111,     7],
    [ 3275,  1063, 13317,  4000,  1254,   912,   269,   996,  1287,   593,   359,   188,   849,    21],
    [ 3264,   587,  4000, 19894,  1159,  1546,   605,   946,  1221,   981,   449,   345,   750,    33],
    [  739,   102,  1254,  1159,  5782,   906,    71,   431,   610,   129,   215,   117,   452,    25],
    [  590,   108,   912,  1546,   906,  6331,    70,   341,   428,   131,   115,   166,   411,    10],
    [  262,    41,   269,   605,    71,    70,  1431,    41,   123,   340,    23,    11,    48,     3],
    [  774,    49,   996,   946,   431,   341,    41,  5302,   223,    33,   747,    80,   289,     9],
    [ 1223,   169,  1287,  1221,   610,   428,   123,   223,  4667,   162,   103,    79,   251,     4],
    [  221,   127,   593,   981,   129,   131,   340,    33,   162,  2303,    30,     9,    64,     3],
    [  424,    44,   359,   449,   215,   115,    23,   747,   103,    30,  2516,    36,   151,     4],
    [  220,    52,   188,   345,   117,   166,    11,    80,    79,     9,    36,  1686,   176,     8],
    [  496,   111,   849,   750,   452,   411,    48,   289,   251,    64,   151,   176,  3385,     8],
    [   40,     7,    21,    33,    25,    10,     3,     9,     4,     3,     4,     8,     8,   227],
])
"""(14, 14) images that carry both findings; the diagonal is `NIH_IMAGE_COUNTS`."""

NIH_PREVALENCE = {name: count / NIH_IMAGES for name, count in NIH_IMAGE_COUNTS.items()}

PADCHEST_LABELS = {
    "Atelectasis": ("atelectasis", "laminar atelectasis", "lobar atelectasis", "segmental atelectasis", "total atelectasis", "round atelectasis", "atelectasis basal"),
    "Cardiomegaly": ("cardiomegaly",), "Effusion": ("pleural effusion", "loculated pleural effusion", "loculated fissural effusion", "hydropneumothorax", "empyema", "hemothorax"),
    "Infiltration": (
        "infiltrates", "interstitial pattern", "reticular interstitial pattern", "reticulonodular interstitial pattern",
        "ground glass pattern", "miliary opacities", "alveolar pattern", "consolidation", "air bronchogram",
    ),
    "Mass": ("mass", "pulmonary mass"), "Nodule": ("nodule", "multiple nodules"), "Pneumonia": ("pneumonia", "atypical pneumonia"),
    "Pneumothorax": ("pneumothorax", "hydropneumothorax"), "Consolidation": ("consolidation", "air bronchogram"),
    "Edema": ("pulmonary edema",), "Emphysema": ("emphysema",), "Fibrosis": ("pulmonary fibrosis", "post radiotherapy changes", "asbestosis signs"),
    "Pleural_Thickening": ("pleural thickening", "apical pleural thickening", "calcified pleural thickening"), "Hernia": ("hiatal hernia",),
}
"""PadChest's labels that mean a finding. Its vocabulary is a tree; children count as their parents. The choice is ours."""
PADCHEST_UNREAD = ("exclude", "suboptimal study", "unchanged")
"""PadChest's labels of an image that was not read: no use, poor, or as in a report that is not there."""
# fmt: on


def spelling(name: str) -> str:
    """The common part of all spellings of a name: letters and digits, in lower case."""
    return "".join(filter(str.isalnum, name.lower()))


_OURS = {spelling(name): name for name in FINDINGS} | {"pleuraleffusion": "Effusion", "infiltrate": "Infiltration"}


def our_name(name: str) -> str:
    """Our name of a finding that is spelt otherwise (`mass`, `Pleural Effusion`); other names as they are."""
    return _OURS.get(spelling(name), name)


# fmt: off
KNOWN = {
    "chexpert": {*map(spelling, (
        "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
        "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
    ))},
    "vindr": {*map(spelling, (
        "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation", "Edema",
        "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung cavity", "Lung cyst", "Lung Opacity", "Mediastinal shift",
        "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax", "Pulmonary fibrosis", "Rib fracture",
        "Other lesion", "COPD", "Lung tumor", "Pneumonia", "Tuberculosis",
    ))},
}
"""Findings of CheXpert's and MIMIC's labeller and of VinDr-CXR, by spelling; any other column of a table is one's own."""
# fmt: on
