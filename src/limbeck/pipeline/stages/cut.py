"""Students that are cut from their teacher, before they are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.data.packing import Rows
from limbeck.errors import under
from limbeck.evaluation.choosing import calibration_rows, cut_student
from limbeck.models.causal_lm import CausalLM
from limbeck.models.folders.save import save_model
from limbeck.models.load import weights_fingerprint
from limbeck.models.proof import prove
from limbeck.pipeline.shared.base import DATA, MACHINE, TEACHER, PipelineStage, data_key, lease_teacher, open_text, pool
from limbeck.pipeline.stages.teacher import teacher_spec
from limbeck.pruning.architectures import llama_cpp_reads_windows
from limbeck.recipe import CutStudent, Data
from limbeck.workflow.stage import Context, Facts, Plain


def cut_name(student: str) -> str:
    return f"cut-{student}"


def cut_folder(student: str) -> str:
    return f"cut/{student}"


@dataclass(frozen=True, kw_only=True)
class Cut(PipelineStage):
    """A student cut from its teacher.

    Attributes:
        student: its name.
        spec, data: sections of the recipe.
        place: the student's place in the recipe.
    """

    student: str
    spec: CutStudent
    data: Data
    place: str
    needs = (MACHINE, DATA, TEACHER)

    @property
    def name(self) -> str:
        return cut_name(self.student)

    def key(self, up: Facts) -> dict[str, Plain]:
        return {
            self.place: self.spec.model_dump(mode="json", exclude={"lora", "save_dtype"}),
            "teacher": up[TEACHER]["fingerprint"],
            "data": data_key(self.data, up[DATA]),
        }

    def outputs(self) -> Sequence[str]:
        return (cut_folder(self.student),)

    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        text, target = open_text(context.folder), context.folder / cut_folder(self.student)
        spec = teacher_spec(up, context.folder)
        rows = Rows(text.train, self.data.seq_len, pack=self.data.pack)
        title = f"cut {self.student} from the teacher"
        work = calibration_rows(self.spec, rows) or None
        with context.task(title, work, "rows") as task, lease_teacher(spec, text) as lm, under(self.place):
            cut, layers = cut_student(lm, self.spec, rows, text.kept, task.advance)
            student = CausalLM(cut, text.tokenizer)
            prove(student)
            save_model(student, target)
            pool().forget(str(target))
        usual = llama_cpp_reads_windows(student.config)
        unusual = (
            f"{self.student}: its sliding windows are not on Gemma's usual layers. transformers and vLLM read where "
            "they are; llama.cpp's converter does not, and a GGUF file of it would be wrong"
        )
        return {
            "layers": layers,
            "parameters": student.n_parameters(),
            "usual_windows": usual,
            "fingerprint": weights_fingerprint(cut),
            "notes": [] if usual else [unusual],
        }
