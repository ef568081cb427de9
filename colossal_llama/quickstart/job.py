"""The order of the quickstart's steps."""

from __future__ import annotations

import shlex
from pathlib import Path

from colossal_llama.atomic import write_text_atomically
from colossal_llama.config.quickstart import QuickstartConfig
from colossal_llama.quickstart import assets, report, steps
from colossal_llama.quickstart.plan import FULL, TINY, StagePlan

PRETRAINED_PROMPT = "却说曹操"
SFT_PROMPT = "请接着往下写：\n玄德与关、张二人商议，"


class QuickstartJob:
    """Expand, initialise, prepare, train in stages, fine-tune, generate, report; done steps are skipped."""

    def __init__(self, config: QuickstartConfig) -> None:
        self._config = config
        self._plan = TINY if config.tiny else FULL
        name = f"{'tiny' if config.tiny else 'full'}-{config.plugin}-{config.processes}"
        name += "-validation" if config.measure_on == "validation" else ""
        self._workspace = steps.Workspace(Path(config.output_dir).resolve() / name)
        self._runner = steps.StepRunner(self._workspace)
        self._flags = steps.plugin_flags(config.plugin)
        self._log: list[steps.Result] = []

    def run(self) -> None:
        """Run what is not done yet, then write and print the report."""
        split = self._config.measure_on
        self._logged("text", "cut the texts", lambda: steps.write_texts(self._workspace, self._plan, split))
        base = self._base_model()
        measurements = [("base model", self._measured("base", base))]
        samples = [self._sampled("base model writes", base, PRETRAINED_PROMPT, "text")]
        self._logged(
            "expand",
            "mine tokens, expand the tokenizer, initialise the model",
            lambda: steps.mine_and_expand(self._workspace, self._plan, base),
        )
        model = weights = self._workspace.folder("model")
        measurements.append(("new tokens, untrained", self._measured("model", model)))
        curves = []
        for stage in self._plan.stages:
            result = self._stage(stage, pretrained=model, start=weights)
            if stage.conversations:
                samples.append(self._sampled("after the last pretraining stage", weights, PRETRAINED_PROMPT, "text"))
            weights = self._workspace.modeling(stage.name)
            curves.append((stage.title, result["losses"]))
            measurements.append((stage.title, self._measured(stage.name, weights)))
        samples.append(self._sampled("after SFT, as a conversation", weights, SFT_PROMPT, "sft"))
        self._logged(
            "compare",
            "compare the first and the last model",
            lambda: steps.compare(self._workspace, base, weights, split, PRETRAINED_PROMPT),
        )
        self._report(measurements, curves, samples)
        print(f"model: {weights}\ntalk to it: python scripts/chat.py {shlex.quote(str(weights))}", flush=True)

    def _base_model(self) -> Path:
        if self._plan.base_stage is None:
            base = self._workspace.folder("base")
            self._logged("base", "unpack SmolLM2-135M", lambda: assets.export_smollm2(base))
            return base
        untrained = self._workspace.folder("untrained")
        texts = assets.english_documents()
        self._logged("untrained", "make a small Llama", lambda: assets.make_tiny_base(untrained, texts))
        self._stage(self._plan.base_stage, pretrained=untrained, start=untrained)
        return self._workspace.modeling(self._plan.base_stage.name)

    def _stage(self, stage: StagePlan, pretrained: Path, start: Path) -> steps.Result:
        self._logged(
            f"prepare-{stage.name}",
            f"prepare the data of {stage.title}",
            lambda: steps.prepare(self._workspace, self._plan, stage, pretrained),
        )
        return self._logged(
            f"train-{stage.name}",
            f"train {stage.title}",
            lambda: steps.train_stage(
                self._workspace, self._plan, stage, self._flags, self._config.processes, pretrained, start
            ),
        )

    def _logged(self, name: str, title: str, action: steps.Action) -> steps.Result:
        result = self._runner.run(name, title, action)
        self._log.append(result)
        return result

    def _measured(self, name: str, model: Path) -> steps.Result:
        split = self._config.measure_on
        return self._logged(f"measure-{name}", f"measure {name}", lambda: steps.measure(self._workspace, model, split))

    def _sampled(self, title: str, model: Path, prompt: str, style: str) -> steps.Result:
        name = "sample-" + "".join(letter if letter.isalnum() else "-" for letter in title)
        return self._runner.run(name, title, lambda: steps.sample(model, prompt, style))

    def _report(
        self,
        measurements: list[tuple[str, steps.Result]],
        curves: list[tuple[str, list[float]]],
        samples: list[steps.Result],
    ) -> None:
        figure = self._workspace.folder("curves.png")
        report.draw_curves(figure, curves, measurements[1:])
        text = "\n\n".join(
            [
                steps.comparison_text(self._workspace),
                "## Steps",
                report.stages_table(measurements),
                report.steps_table(self._log),
                "\n".join(f"{one['title']}: {one['prompt']!r} -> {one['text']!r}" for one in samples),
            ]
        )
        path = self._workspace.folder("report.md")
        write_text_atomically(path, text + "\n")
        print(f"\n{text}\n\nreport: {path}\ncurves: {figure}", flush=True)
