"""Fewer distinct weights: clustering, the Deep Compression codec, layers shared by models."""

from tfcompress.sharing.across import SharedGroup, SharedModels, share_weights
from tfcompress.sharing.callbacks import Clustering, refresh_assignments
from tfcompress.sharing.clustering import ClusteringReport, cluster, clustering_report
from tfcompress.sharing.codebook import Cluster
from tfcompress.sharing.codec import PackReport, pack, unpack

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
