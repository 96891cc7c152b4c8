"""One GRPO step in TRL, timed: `python -m benchmarks.peers_trl JOB`, inside TRL's environment.

Measured: whole steps of `GRPOTrainer.train`, as a user runs it: its own sampling
(`transformers.generate`), reference, loss, optimizer. Nothing of it is replaced; methods are timed.

What it does that others do not, or otherwise:

- The prompt is repeated G times before anything is computed: sampling, reference and training
  read P * G * (L + T) tokens.
- Off a GPU, its fused head projects every position to the vocabulary, the prompt's as well
  (`compact` in `trl.trainer.utils.add_fused_lm_head`), in tiles that are never all held at once.
- It computes the entropy of each token while training, to log it.
- It clips the gradient's norm at 1, the default of transformers.
- With one update a step it takes the log-probabilities of the update for the old ones, as Tunix
  does: the policy is not scored a second time.

Settings: no gradient checkpointing (on by default: less memory, its documentation says about 20 %
slower), float32 like the others (bfloat16 by default), its default fused AdamW, no logs, no files.
"""

import pathlib
import tempfile

import datasets
import tokenizers
import torch
import transformers
import trl

from benchmarks import peers_clock


def save_random_model(job: peers_clock.Job, folder: pathlib.Path) -> None:
    """A Llama of the shape, random weights: a folder, since TRL loads its reference by path."""
    shape = job.shape
    config = transformers.LlamaConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"],
        num_hidden_layers=shape["num_layers"],
        num_attention_heads=shape["num_heads"],
        num_key_value_heads=shape["num_kv_heads"],
        head_dim=shape["head_dim"],
        rms_norm_eps=shape["norm_eps"],
        rope_theta=shape["rope_theta"],
        tie_word_embeddings=shape["tie_embeddings"],
        max_position_embeddings=job.prompt_len + job.new_tokens,
        # The trainer sets both, to the tokenizer's, which the network cannot draw.
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def number_tokenizer(job: peers_clock.Job) -> transformers.PreTrainedTokenizerFast:
    """The number i is token i; no token begins a text, and the end token is never drawn."""
    vocab = {str(i): i for i in range(job.end_id)} | {"<end>": job.end_id}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<end>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<end>", pad_token="<end>"
    )


def reward_each(completions, **_) -> list[float]:
    return [peers_clock.reward(completion) for completion in completions]


def make_trainer(job: peers_clock.Job, folder: pathlib.Path) -> trl.GRPOTrainer:
    """The trainer of one update for each P * G completions, with a frozen reference."""
    settings = trl.GRPOConfig(
        output_dir=str(folder / "output"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_steps=job.all_steps,
        # Groups may be cut across micro-batches: their advantages are there before.
        per_device_train_batch_size=job.rows // job.micro_batches,
        gradient_accumulation_steps=job.micro_batches,
        num_generations=job.group,
        num_iterations=1,
        max_completion_length=job.new_tokens,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.04,
        loss_type="grpo",
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        shuffle_dataset=False,
        dataloader_num_workers=0,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return trl.GRPOTrainer(
        model=str(folder / "model"),
        reward_funcs=reward_each,
        args=settings,
        train_dataset=datasets.Dataset.from_dict({"prompt": peers_clock.random_prompts(job)}),
        processing_class=number_tokenizer(job),
    )


class StepEnds(transformers.TrainerCallback):
    """Tells the clock of each optimizer step."""

    def __init__(self, clock: peers_clock.Clock):
        self.clock = clock

    def on_step_end(self, args, state, control, **_):
        self.clock.step_ends()


def check_work(job: peers_clock.Job, trainer: trl.GRPOTrainer) -> None:
    """Has the trainer assert, at each step, that it does the work it is said to do."""
    sample_and_score, compute_loss = trainer._generate_and_score_completions, trainer._compute_loss

    def check_shapes(rows: int, batch: dict[str, torch.Tensor]) -> None:
        prompt, completion = (rows, job.prompt_len), (rows, job.new_tokens)
        assert batch["prompt_ids"].shape == prompt, batch["prompt_ids"].shape
        assert batch["completion_ids"].shape == completion, batch["completion_ids"].shape
        assert batch["ref_per_token_logps"].shape == completion
        # An end token would have been masked; a shorter prompt padded.
        assert batch["prompt_mask"].all()
        assert batch["completion_mask"].all()

    def checked_sample_and_score(inputs):
        batch = sample_and_score(inputs)
        check_shapes(job.rows, batch)
        return batch

    def checked_compute_loss(model, inputs):
        check_shapes(job.rows // job.micro_batches, inputs)
        return compute_loss(model, inputs)

    trainer._generate_and_score_completions = checked_sample_and_score
    trainer._compute_loss = checked_compute_loss
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}
    assert {weight.dtype for weight in trainer.ref_model.parameters()} == {torch.float32}


def main() -> None:
    job = peers_clock.read_job()
    torch.set_num_threads(job.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        save_random_model(job, folder / "model")
        trainer = make_trainer(job, folder)
        check_work(job, trainer)
        clock = peers_clock.Clock()
        trainer.add_callback(StepEnds(clock))
        clock.time(trainer, "_generate", "sample_seconds")
        clock.time(trainer, "_calculate_rewards", "score_seconds")
        clock.time(
            trainer,
            "_get_per_token_logps_and_entropies",
            "reference_seconds",
            counts=lambda model, *_, **__: model is trainer.ref_model,
        )
        before = trainer.model.get_input_embeddings().weight.detach().clone()
        trainer.train()
        after = trainer.model.get_input_embeddings().weight
        assert not torch.equal(before, after), "the weights are what they were"
    notes = {
        "num_parameters": sum(weight.numel() for weight in trainer.model.parameters()),
        "attention": trainer.model.config._attn_implementation,
        "optimizer": str(getattr(trainer.args.optim, "value", trainer.args.optim)),
        "rope_theta": trainer.model.config.rope_parameters["rope_theta"],
    }
    clock.print_report(job, ["trl", "transformers", "accelerate", "torch"], notes)


if __name__ == "__main__":
    main()
