"""stub"""

from talud.errors import SourceError


def local(href, settings):
    p = settings.data / href
    if not p.is_file():
        raise SourceError(f"{href}: no such raster")
    return p
