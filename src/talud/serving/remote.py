"""stub"""


def is_remote(href):
    return "://" in href


def check(url, settings):
    pass


def fetch(url, folder, settings):
    raise NotImplementedError


def notify(url, document, settings):
    pass
