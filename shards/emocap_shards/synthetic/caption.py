from emocap_shards.sample import Caption
from emocap_shards.synthetic.face import Face


def caption(face: Face) -> Caption:
    return Caption("", (), "")
