"""Fields of other people's configs that change nothing of what weights mean.

A field that is neither read here nor on these lists may change everything, and the next
version of a library brings another one. So it is refused by its name, unless its value
says that what it is for is off.
"""

from collections.abc import Iterable
from typing import Any

from vlm_rlaif_jax.weights.json_section import Section

_BOOKKEEPING = (  # of every config of transformers, and what it once kept there
  '_name_or_path', '_commit_hash', '_attn_implementation_autoset',
  '_attn_implementation', 'attn_implementation', '_flash_attn_2_enabled',
  'architectures', 'model_type', 'transformers_version', 'torch_dtype', 'dtype',
  'return_dict', 'output_hidden_states', 'output_attentions', 'torchscript',
  'use_bfloat16', 'tf_legacy_loss', 'use_cache', 'chunk_size_feed_forward',
  'finetuning_task', 'id2label', 'label2id', 'num_labels', 'problem_type',
  'tokenizer_class', 'prefix', 'task_specific_params', 'bos_token_id', 'pad_token_id',
  'eos_token_id', 'sep_token_id', 'decoder_start_token_id',
)  # fmt: skip
_GENERATION = (  # settings of `generate`; ours are arguments
  'max_length', 'min_length', 'do_sample', 'early_stopping', 'num_beams',
  'num_beam_groups', 'diversity_penalty', 'temperature', 'top_k', 'top_p', 'typical_p',
  'repetition_penalty', 'length_penalty', 'no_repeat_ngram_size',
  'encoder_no_repeat_ngram_size', 'bad_words_ids', 'num_return_sequences',
  'output_scores', 'return_dict_in_generate', 'forced_bos_token_id',
  'forced_eos_token_id', 'remove_invalid_values', 'exponential_decay_length_penalty',
  'suppress_tokens', 'begin_suppress_tokens',
)  # fmt: skip
_TRAINING = (
  'initializer_range', 'initializer_factor', 'attention_dropout', 'dropout',
  'embd_pdrop', 'resid_pdrop', 'pretraining_tp', 'gradient_checkpointing',
)  # fmt: skip
_SHAPES = (  # the tensors decide these
  'vocab_size', 'hidden_size', 'intermediate_size', 'projection_dim', 'image_size',
  'patch_size',
)  # fmt: skip
_COMMON = (*_BOOKKEEPING, *_GENERATION, *_TRAINING, *_SHAPES)
DECODER = (
  *_COMMON,
  'hidden_act', 'attention_bias', 'mlp_bias', 'sliding_window', 'num_hidden_layers',
  'num_attention_heads', 'num_key_value_heads', 'head_dim', 'max_position_embeddings',
  'rope_theta', 'rope_scaling', 'rope_parameters', 'rms_norm_eps', 'layer_types',
  'tie_word_embeddings', 'partial_rotary_factor', 'max_sequence_length',
  'model_max_length',
)  # fmt: skip
ROPE = (
  'rope_type', 'type', 'rope_theta', 'partial_rotary_factor', 'factor',
  'original_max_position_embeddings',
)  # fmt: skip
LLAVA = (  # beside those of the decoder, in both layouts
  'text_config', 'vision_config', 'quantization_config', 'image_token_index',
  'image_token_id',
  'image_seq_length', 'ignore_index', 'vision_feature_layer',
  'vision_feature_select_strategy', 'projector_hidden_act',
  'multimodal_projector_bias', 'mm_projector_type', 'mm_hidden_size',
  'mm_vision_tower', 'vision_tower', 'mm_vision_select_layer',
  'mm_vision_select_feature',
  'mm_use_im_start_end', 'mm_use_im_patch_token', 'mm_patch_merge_type', 'use_mm_proj',
  'image_aspect_ratio', 'image_grid_pinpoints', 'image_crop_resolution',
  'image_split_resolution', 'freeze_mm_mlp_adapter', 'tune_mm_mlp_adapter',
  'freeze_mm_vision_resampler', 'tune_mm_vision_resampler', 'unfreeze_mm_vision_tower',
  'mm_tunable_parts', 'mm_projector_lr', 'mm_vision_tower_lr',
  'pretrain_mm_mlp_adapter', 'tokenizer_padding_side', 'tokenizer_model_max_length',
)  # fmt: skip
CLIP = (
  *_COMMON,
  'hidden_act', 'layer_norm_eps', 'num_hidden_layers', 'num_attention_heads',
  'num_channels', 'max_position_embeddings', 'logit_scale_init_value', 'text_config',
  'vision_config', 'text_config_dict', 'vision_config_dict', 'tie_word_embeddings',
)  # fmt: skip
ADAPTER = (  # of PEFT
  'peft_type', 'peft_version', 'task_type', 'auto_mapping', 'revision',
  'base_model_name_or_path', 'inference_mode', 'runtime_config', 'r', 'lora_alpha',
  'lora_dropout', 'use_rslora', 'target_modules', 'exclude_modules',
  'layers_to_transform', 'layers_pattern', 'megatron_config', 'megatron_core',
  'merge_weights', 'qalora_group_size',
  # of starts that `init_lora_weights` would have to name
  'loftq_config', 'eva_config', 'corda_config', 'lora_ga_config',
)  # fmt: skip
PREPROCESSOR = (  # of classes, of arrays in and out, and of the text around a picture
  'processor_class', 'transformers_version', '_valid_processor_keys',
  'model_input_names', 'data_format', 'input_data_format', 'return_tensors', 'device',
  'disable_grouping', 'image_seq_length', '_commit_hash', '_name_or_path',
)  # fmt: skip
ARCHITECTURES = (
  'LlamaForCausalLM', 'LLaMAForCausalLM', 'LlamaModel', 'LlavaLlamaForCausalLM',
  'LlavaLlamaModel', 'LlavaForConditionalGeneration', 'LlavaModel', 'CLIPModel',
  'CLIPVisionModel', 'CLIPVisionModelWithProjection', 'CLIPTextModel',
  'CLIPTextModelWithProjection',
)  # fmt: skip


def reject_unknown(config: Section, fields: Iterable[str]) -> None:
  """Raises ConvertError for a field that is neither known nor off.

  Args:
    fields: those that are read, or that change nothing.
  """
  allowed = set(fields)
  for name, value in config.values.items():
    if name not in allowed and not is_off(value):
      raise config.error(
        name,
        'none: it is not computed here and may change what the weights mean; remove it '
        'if it does not',
      )


def check_checkpoint(config: Section, fields: Iterable[str]) -> None:
  """Raises ConvertError for a class or a field of `config.json` that is not ours."""
  check_architectures(config)
  reject_unknown(config, fields)


def is_off(value: Any) -> bool:
  """Whether a value of a field says that what the field is for is not used."""
  if isinstance(value, dict):
    return all(map(is_off, value.values()))
  return value is None or value is False or value == '' or value == []


def check_architectures(config: Section) -> None:
  """Raises ConvertError if a config names a class that is not one of ours."""
  named = config.values.get('architectures') or []
  if not isinstance(named, list) or any(name not in ARCHITECTURES for name in named):
    raise config.error('architectures', f'one of {", ".join(ARCHITECTURES)}')


def check_repeated(config: Section, name: str) -> None:
  """Raises ConvertError if `<name>_dict`, which overrules `<name>`, is not equal."""
  first, second = config.section(name), config.section(f'{name}_dict')
  for field, value in second.values.items():
    if first.values.get(field, value) != value:
      raise second.error(field, f'{first.values[field]!r} as in {name}')
