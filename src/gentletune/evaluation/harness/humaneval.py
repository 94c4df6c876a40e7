"""HumanEval in the harness's prompts, scored in our sandbox: lm-eval's own scorer runs code on the machine itself."""

from __future__ import annotations

from collections.abc import Mapping
from math import comb
from typing import Any

from gentletune.sandbox.host import humaneval_program, run_many

DATASET = "openai/openai_humaneval"


def humaneval_task(config: Mapping[str, Any], *, allow_unsafe: bool) -> Any:
    """lm-eval's task from its configuration (functions unresolved), scored by pass@k in the sandbox.

    A document's response is the list of outcomes of its samples, one line each. Raises `UserError` at scoring where
    there is no isolation and `allow_unsafe` is not given.
    """
    from lm_eval.api.task import ConfigurableTask

    ks = [k for metric in config["metric_list"] for k in metric.get("k", [1])]
    fenced = "gen_prefix" in config  # the instruct variants answer inside a code block

    def outcomes(responses: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
        programs = [
            humaneval_program(doc, text.split("```", 1)[0] if fenced else text)
            for doc, texts in zip(docs, responses, strict=True)
            for text in texts
        ]
        reasons = iter([outcome.reason for outcome in run_many(programs, allow_unsafe=allow_unsafe)])
        return [[next(reasons) for _ in texts] for texts in responses]

    def passes(_doc: dict[str, Any], results: list[list[str]]) -> dict[str, float]:
        reasons = results[0]
        return {f"pass@{k}": pass_at_k(len(reasons), sum(r == "passed" for r in reasons), k) for k in ks}

    kept = {k: v for k, v in config.items() if k not in ("metric_list", "filter_list", "unsafe_code", "tag")}
    return ConfigurableTask(
        config={
            **kept,
            "process_results": passes,
            "metric_list": [{"metric": f"pass@{k}", "aggregation": "mean", "higher_is_better": True} for k in ks],
            "filter_list": [{"name": "sandbox", "filter": [{"function": "custom", "filter_fn": outcomes}]}],
        }
    )


def pass_at_k(n: int, passed: int, k: int) -> float:
    """Unbiased estimate of the chance that one of `k` samples passes, from `passed` of `n`.

    Chen et al. 2021, arXiv 2107.03374, equation 1.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    return 1.0 - comb(n - passed, k) / comb(n, k)
