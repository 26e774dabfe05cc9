"""A page of HTML as a test sees it."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """What a page refers to, its tags, its visible text, its headings."""

    def __init__(self, text):
        super().__init__()
        self.links, self.tags, self.words, self.pictures = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        self.links += [found[k] for k in ("src", "href", "srcset", "data", "action") if k in found]
        if tag == "img":
            self.pictures.append(found)

    def handle_data(self, data):
        if not self.tags or self.tags[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())
