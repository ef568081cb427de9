"""The chat page, by Gradio 5 or 6."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from threading import Event
from typing import Any

import gradio as gr

from colossal_llama.chat.files import conversation_line
from colossal_llama.chat.rooms import Rooms
from colossal_llama.chat.session import ChatSession, describe_dropped
from colossal_llama.errors import UserError
from colossal_llama.generation.settings import SamplingSettings

ONE_MODEL = "model"
"""Events with this ``concurrency_id`` wait for each other: the model writes one answer at a time."""

GRADIO_MAJOR = int(gr.__version__.partition(".")[0])

SYSTEM_FONTS = ("system-ui", "sans-serif")
SYSTEM_MONO_FONTS = ("ui-monospace", "monospace")

STYLE = """
footer { display: none !important; }
.gradio-container { width: 100% !important; max-width: 1280px !important; margin: 0 auto !important; }
#conversation { height: calc(100vh - 150px) !important; min-height: 300px; }
.sr-only { position: absolute !important; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
"""
"""The last rule hides labels that are for screen readers only: Gradio's own rule was seen not to apply."""

DOWNLOAD = """(text) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
    link.download = "conversation.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    return text;
}"""

SHOW_EVERY_SECONDS = 0.05
"""A browser that is sent every token of a fast model falls behind."""

Messages = list[dict[str, str]]


def page_look() -> dict[str, Any]:
    """Theme and CSS: arguments of ``gr.Blocks`` in Gradio 5 and of ``gr.mount_gradio_app`` in Gradio 6."""
    theme = gr.themes.Default(primary_hue="indigo", font=SYSTEM_FONTS, font_mono=SYSTEM_MONO_FONTS)
    return {"theme": theme, "css": STYLE}


class ChatPage:
    """What the controls of the page do.

    Args:
        rooms: the conversations.
        defaults: settings that the page starts with.
    """

    def __init__(self, rooms: Rooms, defaults: SamplingSettings) -> None:
        self._rooms = rooms
        self._defaults = defaults

    def send(self, request: gr.Request) -> tuple[Any, Any, int]:
        """A question was sent: the buttons, and its number, which :meth:`answer` takes when its turn comes."""
        number = self._rooms.enter(str(request.session_hash)).send()
        return *self.buttons(request), number

    def answer(
        self,
        number: int,
        question: str,
        system: str,
        do_sample: bool,
        temperature: float,
        top_p: float,
        top_k: float,
        max_new_tokens: float,
        request: gr.Request,
    ) -> Iterator[tuple[Messages, Any]]:
        """Yield what the conversation and the question's box show, piece by piece of the answer."""
        room = self._rooms.enter(str(request.session_hash))
        stop = room.begin(number)
        if stop is None:  # stopped while another tab's answer was being written, or sent twice
            yield gr.skip(), gr.skip()
            return
        settings = SamplingSettings(int(max_new_tokens), do_sample, temperature, int(top_k), top_p)
        try:
            yield from self._answer(room.session, question, system.strip(), settings, stop)
        finally:
            room.end(number)

    def _answer(
        self, session: ChatSession, question: str, system: str, settings: SamplingSettings, stop: Event
    ) -> Iterator[tuple[Messages, Any]]:
        self._rooms.free_caches()
        session.system = system
        if not question.strip():
            yield visible(session.messages), gr.skip()
            return
        try:
            answer = session.ask(question.strip(), settings, stop)
        except UserError as error:
            gr.Warning(str(error))
            yield visible(session.messages), gr.skip()
            return
        if answer.dropped_turns:
            gr.Info(describe_dropped(answer.dropped_turns))
        shown = [*visible(session.messages), {"role": "user", "content": question}]
        yield shown, ""
        before = len(session.messages)
        try:
            for text in paced(answer):
                yield [*shown, {"role": "assistant", "content": text}], gr.skip()
        except UserError as error:
            gr.Warning(str(error))
            is_kept = len(session.messages) > before
            yield visible(session.messages), gr.skip() if is_kept else question
            return
        yield visible(session.messages), gr.skip()

    def stop(self, request: gr.Request) -> tuple[Any, Any]:
        """End the answer that is being written, or take back the question that waits for it; the buttons."""
        self._rooms.enter(str(request.session_hash)).stop()
        return self.buttons(request)

    def buttons(self, request: gr.Request) -> tuple[Any, Any]:
        """Send, or Stop in its place while a question of this tab waits or is being answered."""
        busy = self._rooms.enter(str(request.session_hash)).busy
        return gr.update(visible=not busy), gr.update(visible=busy)

    def clear(self, request: gr.Request) -> Messages:
        """Forget the conversation."""
        session = self._rooms.enter(str(request.session_hash)).session
        session.clear()
        return visible(session.messages)

    def export(self, request: gr.Request) -> str:
        """The conversation as a file's content."""
        return conversation_line(self._rooms.enter(str(request.session_hash)).session.messages) + "\n"

    def leave(self, request: gr.Request) -> None:
        """The tab was closed."""
        self._rooms.leave(str(request.session_hash))

    def settings_controls(self) -> list[gr.components.Component]:
        """Controls of the sampling settings, in the order of :meth:`answer`; their ranges hold what they start with."""
        start = self._defaults
        coldest, hottest = min(0.05, start.temperature), max(2.0, start.temperature)
        return [
            gr.Checkbox(start.do_sample, label="Sample", info="off: always the likeliest token"),
            gr.Slider(coldest, hottest, start.temperature, step=0.05, label="Temperature"),
            gr.Slider(min(0.05, start.top_p), 1.0, start.top_p, step=0.05, label="Top p"),
            gr.Slider(0, max(200, start.top_k), start.top_k, step=1, label="Top k", info="0: no limit"),
            gr.Slider(1, max(4096, start.max_new_tokens), start.max_new_tokens, step=1, label="Max new tokens"),
        ]


def paced(
    pieces: Iterable[str], seconds: float = SHOW_EVERY_SECONDS, clock: Callable[[], float] = time.monotonic
) -> Iterator[str]:
    """The growing text of ``pieces``, at most once in so many seconds; what is left at the end is not shown."""
    text = ""
    shown = -math.inf
    for piece in pieces:
        text += piece
        now = clock()
        if now - shown >= seconds:
            shown = now
            yield text


def visible(messages: Messages) -> Messages:
    """The messages that the page shows: all but the system message."""
    return [message for message in messages if message["role"] != "system"]


def build_page(rooms: Rooms, title: str, defaults: SamplingSettings, system: str) -> gr.Blocks:
    """The page with its events.

    Args:
        rooms: the conversations.
        title: what it is called, the model's name for example.
        defaults: settings that it starts with.
        system: system message that it starts with.
    """
    page = ChatPage(rooms, defaults)
    look = page_look() if GRADIO_MAJOR < 6 else {}
    with gr.Blocks(title=f"Chat: {title}", analytics_enabled=False, fill_width=True, **look) as blocks:
        gr.Markdown(f"### {title}")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3):
                conversation = _conversation_view()
                with gr.Row(equal_height=True):
                    box = gr.Textbox(
                        placeholder="Message (Enter sends, Shift+Enter: new line)",
                        label="Message",
                        show_label=False,
                        container=False,
                        max_lines=8,
                        scale=8,
                        autofocus=True,
                    )
                    send = gr.Button("Send", variant="primary", scale=1, min_width=90)
                    stop = gr.Button("Stop", variant="stop", scale=1, min_width=90, visible=False)
            with gr.Column(scale=1, min_width=260):
                prompt = gr.Textbox(system, label="System message", lines=2, max_lines=8)
                controls = page.settings_controls()
                with gr.Row():
                    clear = gr.Button("New chat", min_width=90)
                    export = gr.Button("Export", min_width=90)
                file = gr.Textbox(visible=False)
        _connect_answers(page, conversation, box, send, stop, [prompt, *controls])
        # The view brings a button of its own, which would empty only the view.
        gr.on([clear.click, conversation.clear], page.stop, outputs=[send, stop], queue=False).then(
            page.clear, outputs=conversation, concurrency_id=ONE_MODEL
        )
        export.click(page.export, outputs=file, queue=False).then(None, file, file, js=DOWNLOAD)
        blocks.unload(page.leave)
    return blocks


def _connect_answers(
    page: ChatPage,
    conversation: gr.Chatbot,
    box: gr.Textbox,
    send: gr.Button,
    stop: gr.Button,
    settings: list[gr.components.Component],
) -> None:
    """Send and Enter write an answer, meanwhile Stop takes the place of Send."""
    number = gr.Number(visible=False, precision=0)
    started = gr.on(
        [send.click, box.submit], page.send, outputs=[send, stop, number], queue=False, show_progress="hidden"
    )
    written = started.then(
        page.answer,
        inputs=[number, box, *settings],
        outputs=[conversation, box],
        concurrency_id=ONE_MODEL,
        concurrency_limit=1,
        show_progress="hidden",
        trigger_mode="multiple",  # a question that was stopped while it waited keeps its place in the queue
    )
    written.then(page.buttons, outputs=[send, stop], queue=False, show_progress="hidden")
    stop.click(page.stop, outputs=[send, stop], queue=False, show_progress="hidden")


def _conversation_view() -> gr.Chatbot:
    # Without the button that would send the conversation to a web site.
    options: dict[str, Any] = {"buttons": ["copy", "copy_all"]}
    if GRADIO_MAJOR < 6:
        options = {"type": "messages", "show_share_button": False, "show_copy_button": True}
    return gr.Chatbot(show_label=False, elem_id="conversation", placeholder="Ask the model something.", **options)
