"""What lies beside the journal once a run has ended: the report, the failures, the areas of the classes, a page."""

import json

from segdeploy import artifact, typed_json
from segdeploy.inference import areas, contact
from segdeploy.inference.report import Report
from segdeploy.inference.run import Ended
from segdeploy.spec import Spec

SUMMARY, FAILED, AREAS, CONTACT = "summary.json", "failed.jsonl", "areas.csv", "contact.html"


def keep(report: Report, ended: Ended, spec: Spec) -> None:
    """Write them into the folder of the journal; the page only where something was segmented or failed."""
    kept = ended.work.task.journal_folder
    failures = sorted((*report.failed, *report.failed_before))
    lines = "".join(json.dumps(typed_json.to_builtins(failure)) + "\n" for failure in failures)
    artifact.write_atomically(kept / FAILED, lines.encode())
    areas.write(kept / AREAS, ended.entries(), spec)
    if report.done or report.failed:
        page = contact.page(report, ended.sheet, spec).encode(errors="replace")
        artifact.write_atomically(kept / CONTACT, page)
    artifact.write_atomically(kept / SUMMARY, typed_json.to_text(report))
