"""Fewer distinct weights: clustering, the Deep Compression codec, layers shared by models."""

from tfcompress.sharing.across import SharedGroup, SharedModels, share_weights
from tfcompress.sharing.callbacks import Clustering, refresh_assignments
from tfcompress.sharing.clustering import cluster
from tfcompress.sharing.codebook import Cluster
from tfcompress.sharing.codec import PackReport, pack, unpack
from tfcompress.sharing.report import ClusteringReport, clustering_report

__all__ = [
    "Cluster",
    "Clustering",
    "ClusteringReport",
    "PackReport",
    "SharedGroup",
    "SharedModels",
    "cluster",
    "clustering_report",
    "pack",
    "refresh_assignments",
    "share_weights",
    "unpack",
]
