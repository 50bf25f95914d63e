"""What the embedded VLM learns from: the cross-entropy of answer tokens in packed batches."""

from torch import Tensor, nn

from aegis_eval.pretraining.packing import PackedBatch
from aegis_policy.vlm.backbone import VLMBackbone


class AnswerLoss(nn.Module):
    """Mean cross-entropy over the answers of a packed batch; a caption counts as much as a single word."""

    def __init__(self, vlm: VLMBackbone) -> None:
        super().__init__()
        self.model = vlm.model

    def forward(self, pixel_values: Tensor, batch: PackedBatch, image_sees_prompt: bool) -> Tensor:
        mask = batch.attention_mask(image_sees_prompt)
        hidden = self.model.base_model(
            input_ids=batch.input_ids,
            pixel_values=pixel_values,
            attention_mask={"full_attention": mask, "sliding_attention": mask},
            position_ids=batch.position_ids,
            use_cache=False,
        ).last_hidden_state
        predicts, targets, weights = batch.targets()
        logits = self.model.get_output_embeddings()(hidden[predicts])
        losses = nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        return (weights * losses).sum() / weights.sum()
