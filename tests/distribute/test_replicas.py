"""Several devices of one machine: `tf.distribute.MirroredStrategy`."""

from tests import fresh


def test_every_technique_is_the_same_on_all_replicas_and_on_one_device():
    fresh.run("from tests.distribute import replicas; replicas.main()")
