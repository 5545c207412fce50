"""One sequence on its way from tokens to text: when it ends, why, and which of its text is decided."""

from __future__ import annotations

from dataclasses import replace

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import UserError
from gptstar.generation.settings import SamplingSettings
from gptstar.generation.stopping import StopStrings
from gptstar.generation.streaming import TextStream


class TooLong(UserError):
    """A prompt and what shall follow it have more tokens than the model can read.

    n_prompt, asked, longest: tokens of the prompt, asked for beside it, and how many there may be in the end
    """

    def __init__(self, n_prompt: int, asked: int, longest: int, remedy: str) -> None:
        super().__init__(
            f"{n_prompt} prompt tokens and max_new_tokens={asked} exceed the {longest} tokens the model can read: "
            f"{remedy}"
        )
        self.n_prompt, self.asked, self.longest = n_prompt, asked, longest


class Prompt:
    """A prompt as the model reads it.

    text            the prompt as the tokenizer gives it back
    tokens          what the model reads; end of text alone for an empty prompt, and the last tokens alone where
                    settings.max_prompt_tokens or settings.truncate say so
    dropped         how many tokens were lost at the beginning
    first           the only tokens the first choice is made from, or None for all
    settings        those asked for, with one token more where one was taken back

    A prompt that ends in white space is healed: byte-pair encodings keep a space in the token of the word that
    follows, so a space by itself is something the model has hardly seen. The last token is taken back, and the first
    one chosen must begin with its text. Not so where the caller forces the first tokens, or wants none.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: str | list[int], settings: SamplingSettings, longest: int | None = None
    ) -> None:
        """prompt: text, or tokens, which are read as they are.

        longest: how many tokens there may be in the end, None: any number. UserError where there would be more.
        """
        text = isinstance(prompt, str)
        shown = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        most = len(shown) if settings.max_prompt_tokens is None else settings.max_prompt_tokens
        self.dropped = max(0, len(shown) - most)
        shown = shown[self.dropped :]
        self.text = tokenizer.decode(shown)
        self.first: list[int] | None = None
        self.settings = settings
        heal = text and len(shown) > 1 and self.text[-1:].isspace()
        if heal and settings.max_new_tokens and not settings.forced_tokens:
            self.first = tokenizer.starting_like(shown.pop())
            least = settings.min_new_tokens
            self.settings = replace(
                settings, max_new_tokens=settings.max_new_tokens + 1, min_new_tokens=least + 1 if least else 0
            )
        self.shown = shown  # what the continuation's text follows
        self.tokens = shown or [tokenizer.eot_id]
        if longest is not None and self.capacity > longest:
            self._shorten(longest, settings.max_new_tokens)

    @property
    def capacity(self) -> int:
        """How many tokens there may be in the end."""
        return len(self.tokens) + self.settings.max_new_tokens

    def _shorten(self, longest: int, asked: int) -> None:
        room = longest - self.settings.max_new_tokens
        if not self.settings.truncate or room < 1:
            otherwise = ", or set truncate=true to drop its beginning" if room > 0 else ""
            raise TooLong(len(self.tokens), asked, longest, f"shorten the prompt, lower max_new_tokens{otherwise}")
        self.dropped += len(self.tokens) - room
        self.tokens = self.tokens[-room:]


class Continuation:
    """Collects the tokens chosen after a prompt and gives out their text.

    tokens          those chosen, without the end of text or stop token that ended them
    finish_reason   None while it goes on; then length (max_new_tokens are there), end_of_text or stop
    stopped_by      the stop string or stop token, if one was the reason
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt) -> None:
        self._eot_id, self._settings = tokenizer.eot_id, prompt.settings
        self._stream = TextStream(tokenizer)
        self._stops = StopStrings(prompt.settings.stop)
        # White space that was taken back from the prompt comes again with the first token, but is no news.
        self._known = len(prompt.text) - len(self._stream.feed_all(prompt.shown))
        self.tokens: list[int] = []
        self.finish_reason: str | None = None
        self.stopped_by: str | int | None = None
        if not prompt.settings.max_new_tokens:
            self.finish_reason = "length"

    def feed(self, token: int) -> str:
        """The text that is decided now that `token` was chosen. At the end all of it is."""
        if token == self._eot_id:
            return self._finish("end_of_text")
        if token in self._settings.stop_tokens:
            self.stopped_by = token
            return self._finish("stop")
        self.tokens.append(token)
        text = self._stops.feed(self._new(self._stream.feed(token)))
        if self._stops.found is not None:
            self.stopped_by, self.finish_reason = self._stops.found, "stop"
        elif len(self.tokens) == self._settings.max_new_tokens:
            text += self._finish("length")
        return text

    def _finish(self, reason: str) -> str:
        self.finish_reason = reason
        text = self._stops.feed(self._new(self._stream.finish()))
        if self._stops.found is not None:  # in the last bytes
            self.stopped_by, self.finish_reason = self._stops.found, "stop"
        return text + self._stops.finish()

    def _new(self, text: str) -> str:
        known, self._known = self._known, max(0, self._known - len(text))
        return text[known:]
