"""The features that docs/compatibility.md tells of, and the tests behind each."""

from __future__ import annotations

import re

from lockstep import OPERATORS as TRAINED

import customops

from .cases import ROWS, one_of_each_path
from .recorder import OPERATORS, Check

# Without a GPU these files are skipped as a whole, so that their tests are not known.
NEEDS_GPU = ("test_gpu.py", "test_gpu_graphs.py", "test_sanitizer.py")


def _check(text: str, **options) -> Check:
    """Return the check for ``file::test``, perhaps with a part of ids in brackets."""
    file, name, part = re.fullmatch(r"(\w+)::(\w+)(?:\[(.*)\])?", text).groups()
    return Check(f"test_{file}.py", name, part or "", **options)


def _shared(text: str, on: str = " ".join(OPERATORS)) -> Check:
    return _check(text, together=tuple(on.split()))


_BY_PATH = " ".join(dict.fromkeys(str(row) for row, _ in one_of_each_path()))  # in tests of one call of each path


def _trained(text: str) -> Check:
    """Return a check of networks and models, on the ten operators that they are made of."""
    return _shared(text, on=" ".join(TRAINED))


def _ours(text: str) -> Check:
    return _check(text, ours=True)


Checks = str | Check | tuple[str | Check, ...]


def _checks(value: Checks) -> tuple[Check, ...]:
    """Return each check of one feature."""
    values = value if type(value) is tuple else (value,)
    return tuple(v if isinstance(v, Check) else _check(v) for v in values)


def _dtype(name: str) -> Checks:
    tests = [f"database::test_samples_have_torchs_value_dtype_and_strides[{name}]"]
    if name in ("complex64", "complex128"):
        tests += [f"precision::test_complex_gradients_are_torchs[({name}, {name})]"]
    if name in ("int64", "uint8", "bool"):
        tests += [f"precision::test_default_dtype_decides_as_in_torch[{name}]"]
    if name in ("float16", "bfloat16", "float32", "float64", "complex64", "complex128"):
        tests += [f"database::test_samples_have_torchs_gradients[{name}]"]
    return tuple(tests)


def _layout(name: str) -> Checks:
    kept = f"memory::test_kernels_write_their_outputs_and_nothing_else[{name}]"
    return f"gradients::test_gradients_match_finite_differences[{name}]", kept


def _kind(name: str) -> Checks:
    tests = "results_and_gradients_are_torchs", "in_place_twins_are_torchs", "out_is_written_as_torch_would"
    return tuple(f"subclass::test_{test}[{name}]" for test in tests)


CALLS = {
    "values, database": "database::test_samples_have_torchs_value_dtype_and_strides",
    "gradients, database": "database::test_samples_have_torchs_gradients",
    "`out=`": "database::test_out_behaves_as_torchs",
    "bad arguments": "database::test_error_inputs_raise_torchs_type",
    "0, -0, inf, nan, 1e30": (
        "edges::test_edges_have_torchs_value_and_gradients",
        "edges::test_edge_numbers_have_torchs_value_and_gradients",
        "edges::test_reductions_of_edges_have_torchs_value_and_gradients",
    ),
    "in-place twin": (
        "inplace::test_unary_twins_match_torch_twice_differentiated",
        "inplace::test_binary_twins_match_torch_twice_differentiated",
        "inplace::test_overlapping_operand_behaves_as_torchs",
    ),
    "refused in place": (
        "inplace::test_what_torch_refuses_is_refused_and_left_unwritten",
        "inplace::test_result_of_another_shape_or_dtype_is_refused",
    ),
    "odd arguments": _shared(
        "arguments::test_odd_arguments_have_torchs_outcome",
        on="exp relu abs neg add sub mul div maximum minimum pow mean sum amax amin",
    ),
}
DTYPES = {
    **{name: _dtype(name) for name in ("float32", "float64", "float16", "bfloat16")},
    **{name: _dtype(name) for name in ("complex64", "complex128", "complex32")},
    **{name: _dtype(name) for name in ("int64", "int32", "int16", "int8", "uint8", "bool")},
    "uint16": _shared("arguments::test_odd_arguments_have_torchs_outcome[uint16]", on="add"),
    "uint32, uint64": (),
    "float8": (),
    "dtypes at random": _shared("hypothesis::test_any_layout_has_torchs_value_dtype_and_shape"),
}
LAYOUTS = {
    **{name: _layout(name) for name in ("contiguous", "transposed", "sliced", "expanded", "channels_last")},
    "gradient shaped as its input": _ours("gradients::test_backward_alone_returns_gradients_that_fit_their_inputs"),
    "`.grad`, its layout": "autograd_engine::test_accumulated_gradients_are_laid_out_as_torchs_and_share_no_memory",
    "large, by blocks": _ours("blocks::test_gradients_by_blocks_are_torchs"),
    "strides at random": _shared("hypothesis::test_any_layout_has_torchs_gradients"),
}
TRANSFORMS = {
    **{name: f"func::test_transform_matches_torch[{name}]" for name in ("grad", "grad_and_value", "vjp", "jvp")},
    "jacrev": ("func::test_transform_matches_torch[jacrev]", "func::test_transform_matches_torch[jacrev by chunks]"),
    **{name: f"func::test_transform_matches_torch[{name}]" for name in ("jacfwd", "hessian", "linearize")},
    "vmap": ("func::test_transform_matches_torch[vmap]", "func::test_transform_matches_torch[vmap by chunks]"),
    "vmap, any axis": "func::test_vmap_over_any_axis_matches_torch_forward_and_backward",
    "vmap of vmap, other axes": "func::test_nested_vmap_over_different_axes_matches_torch",
    "functionalize": "func::test_transform_matches_torch[functionalize]",
    "two or three composed": _shared("func::test_transform_of_transforms_matches_torch"),
    "complex numbers": "func::test_transform_of_complex_numbers_matches_torch",
    "`has_aux`": "func::test_auxiliary_output_matches_torch",
    "per-sample gradients": _trained("func::test_gradients_of_each_sample_match_torch_and_a_loop"),
    "in place, transformed": "func_refusals::test_in_place_twin_under_a_transform_matches_torch",
    "what torch refuses": _shared(
        "func_refusals::test_what_torch_refuses_under_a_transform_is_refused", on="exp relu add sub mul pow mean sum"
    ),
    "torch.autograd.functional": "func::test_autograd_functional_matches_torch",
}
FORWARD_MODE = {
    "tangents": "func_forward_ad::test_tangents_of_any_operands_match_torch",
    "tangents of mixed dtypes": "func_forward_ad::test_tangents_of_mixed_dtypes_match_torch",
    "tangents at 0, -0, inf, nan, 1e30": "func_forward_ad::test_edges_have_torchs_tangents",
    "with gradients, both ways": "func_forward_ad::test_gradients_of_tangents_and_tangents_of_gradients_match_torch",
    "gradcheck of both modes": "func_forward_ad::test_both_modes_pass_gradcheck_in_batches",
    "in place, dual": "func_forward_ad::test_in_place_twin_of_dual_numbers_matches_torch",
    "odd calls": _shared(
        "func_forward_ad::test_odd_calls_on_dual_numbers_match_torch", on="log exp sigmoid add mul pow mean sum"
    ),
}
ORDERS = {
    **{
        f"{nth} derivative": f"higher::test_first_three_derivatives_match_torch[{order}]"
        for order, nth in enumerate(("first", "second", "third"), 1)
    },
    "gradcheck, gradgradcheck": "gradients::test_gradients_match_finite_differences",
    "batches, differentiated again": "higher::test_batches_of_cotangents_match_torch",
    "losses with derivatives": _trained("demo::test_trainings_of_higher_order_agree"),
}
COMPILED = {
    "torch.compile": "compile::test_compiled_calls_have_torchs_graphs_values_and_gradients[static]",
    "torch.compile, dynamic": "compile::test_compiled_calls_have_torchs_graphs_values_and_gradients[dynamic]",
    "as often recompiled": _shared(
        "compile::test_changed_arguments_are_compiled_for_as_often_as_torchs",
        on="log exp relu sigmoid tanh sqrt rsqrt abs neg add sub mul div pow mean sum",
    ),
    "programs, and refused ones": _shared(
        "compile::test_compiled_programs_do_what_torchs_do",
        on="log exp relu sigmoid tanh sqrt rsqrt abs neg add sub mul div pow mean sum",
    ),
    "transforms inside": _shared("compile_transforms::test_compiled_transforms_drop_no_derivative"),
    "compiled autograd": _shared("compile_transforms::test_compiled_autograd_traces_our_backward", on=_BY_PATH),
    "Inductor": _shared("compile_inductor::test_inductor_computes_calls_and_their_gradients", on=_BY_PATH),
    "fused in as few kernels": _trained("compile_inductor::test_chain_is_fused_into_as_many_kernels_as_torchs"),
    "torch.export": _trained("compile_export::test_exported_models_are_torchs_and_survive_a_file"),
    "AOTInductor": _trained("compile_export::test_aot_inductor_packages_a_model"),
    "make_fx": "compile_export::test_make_fx_records_torchs_operators",
    "symbolic sizes": "compile_export::test_symbolic_sizes_are_numbers",
    "jit.trace, fx.symbolic_trace": "compile_export::test_tracers_record_what_computes_the_same",
    "jit.script": (),
}
HOOKS = {
    "checkpoint": "autograd::test_checkpoint_gives_the_same_gradients",
    "checkpoint under a dispatch mode": "autograd::test_checkpoint_may_begin_or_end_under_a_dispatch_mode",
    "selective checkpoint": "autograd::test_selective_checkpoint_asks_about_the_same_operators",
    "saved-tensor hooks": "autograd::test_saved_tensors_hooks_get_and_may_replace_the_same_tensors",
    "saved-tensor hooks that fail": "autograd::test_saved_tensors_hooks_that_fail_raise_the_same",
    **{
        f"`{name}`": f"autograd::test_contexts_of_saved_tensors_give_the_same_gradients[{name}]"
        for name in ("save_on_cpu", "disable_saved_tensors_hooks", "allow_mutation_on_saved_tensors")
    },
    "bytes saved, no more": "gradients::test_saves_no_more_bytes_than_torch",
    "a saved tensor changed": "autograd::test_changing_a_saved_tensor_raises_exactly_where_torch_does",
    "hooks of tensors, nodes": "autograd::test_hooks_of_tensors_and_nodes_run_in_the_same_order_and_change_gradients",
    "hooks of modules": "autograd::test_hooks_of_modules_get_the_same",
    "anomaly mode": _ours("autograd::test_anomaly_mode_names_the_operator_and_the_line_that_called_it"),
    "anomaly mode, in place": _ours("autograd::test_anomaly_mode_names_the_operator_of_an_in_place_call"),
}
ENGINE = {
    "a second backward": "autograd::test_second_backward_raises_exactly_where_torchs_does",
    "grad modes": "autograd_engine::test_grad_modes_decide_what_is_recorded",
    "grad modes, in place": "autograd_engine::test_grad_modes_decide_what_is_recorded_in_place",
    "backward under a grad mode": "autograd_engine::test_backward_disregards_the_grad_mode_around_it",
    "inference tensors": "autograd_engine::test_inference_tensors_are_refused_exactly_where_torch_would_save_them",
    "every kind of cotangent": "autograd_engine::test_every_kind_of_cotangent_is_taken_or_refused_as_torch_does",
    "batches of cotangents": "autograd_engine::test_batches_of_cotangents_give_batches_of_gradients",
    "no cotangent": "autograd_engine::test_gradients_that_do_not_arrive_go_no_further",
    "unused inputs": "autograd_engine::test_what_was_not_used_is_missing_as_in_torch",
    "a tensor used many times": "autograd_engine::test_a_tensor_used_many_times_gets_the_sum",
    "nodes walked": "autograd_graph::test_nodes_can_be_walked_and_carry_what_torchs_do",
    "saved tensors read": _ours("autograd_graph::test_saved_tensors_can_be_read_until_backward_frees_them"),
    "memory freed early": "autograd_graph::test_memory_is_freed_without_the_garbage_collector_and_as_early_as_torchs",
    "profilers": _ours("autograd_graph::test_profilers_see_the_operator_and_link_its_backward_to_its_forward"),
    "threads": "autograd_graph::test_threads_go_backward_at_once",
    "generators": "autograd_graph::test_generators_keep_their_grad_mode_to_themselves",
    "a view of a result, in place": "autograd_graph::test_a_view_of_a_result_written_in_place_is_differentiated",
    "in place, through a view": "autograd_graph::test_writing_into_a_view_reaches_its_base_and_the_other_views",
    "pickles, copies": _ours("autograd_processes::test_functions_and_operators_are_pickled_and_copied_as_themselves"),
    "fork, spawn, shared models": _shared(
        "autograd_processes::test_child_processes_compute_the_same_and_train_a_shared_model"
    ),
    "data loaders": _shared("autograd_processes::test_workers_of_a_data_loader_give_what_torchs_do"),
}
PRECISION = {
    "autocast": "precision_autocast::test_values_and_gradients_match_torch",
    "autocast, forward mode": "precision_autocast::test_tangents_match_torch",
    "autocast, overflow": "precision_autocast::test_gradients_overflow_only_where_torchs_do",
    "autocast on the CPU": "precision_autocast::test_cpu_autocast_changes_nothing",
    "autocast, fake CUDA": "precision_autocast::test_fake_cuda_tensors_are_cast_by_torch_itself",
    "GradScaler": "precision_autocast::test_gradients_can_be_unscaled_in_place",
    "default dtype": "precision::test_default_dtype_decides_as_in_torch",
    "default device": "precision::test_default_device_moves_nothing",
    "complex gradients": "precision::test_complex_gradients_are_torchs",
    "conjugate convention": "precision::test_complex_derivatives_follow_the_conjugate_convention",
    "deterministic mode": "precision::test_deterministic_mode_changes_no_bit",
}
TENSORS = {
    **{name: _kind(name) for name in ("parameter", "buffer", "uninitialized", "subclass", "parameter of a subclass")},
    **{name: _kind(name) for name in ("dispatch subclass", "masked", "meta", "fake", "nested", "jagged", "sparse")},
    **{name: _kind(name) for name in ("sparse rows", "mkldnn", "quantised", "conjugated", "negated", "zero")},
    "fake, on any device": "subclass::test_results_stay_on_a_device_that_is_not_there",
    "escaped from a transform": "subclass::test_value_that_escaped_a_transform_still_computes",
    "`__torch_function__`": "subclass_overrides::test_subclass_is_asked_about_torchs_function_alone",
    "`__torch_function__`, no tensor": "subclass_overrides::test_gradients_reach_what_stands_for_a_tensor",
    "function modes": "subclass_overrides::test_function_mode_may_change_a_result",
    "dispatch modes": "subclass_overrides::test_dispatch_mode_sees_what_torch_calls",
}
DISTRIBUTED = {
    "DTensor, every placement": "distributed_tensor::test_every_placement_gives_what_torch_gives",
    "DTensor, mesh of two axes": "distributed_tensor::test_mesh_of_two_axes_gives_what_torch_gives",
    "DTensor, gradients added up": "distributed_tensor::test_gradients_add_up_and_share_no_memory",
    "DTensor, unusual uses": _shared("distributed_tensor::test_unusual_use_is_torchs", on="exp relu add mul mean sum"),
    "DTensor, by kernels": _ours("distributed_tensor::test_kernels_run_on_what_is_here"),
    "DDP": _trained("distributed_engines::test_two_ranks_train_as_one_process[ddp]"),
    "FSDP2": _trained("distributed_engines::test_two_ranks_train_as_one_process[fsdp]"),
    "HSDP": _trained("distributed_engines::test_four_ranks_train_as_one_process[fsdp, repeated]"),
    "tensor parallel": _trained("distributed_engines::test_two_ranks_train_as_one_process[tensor]"),
    "pipeline": _trained("distributed_engines::test_two_ranks_train_as_one_process[pipeline]"),
    "tensor parallel and FSDP2": _trained("distributed_engines::test_four_ranks_train_as_one_process[tensor and fsdp]"),
    "pipeline and FSDP2": _trained("distributed_engines::test_four_ranks_train_as_one_process[pipeline and fsdp]"),
    "fp16 and bf16 engines": _trained(
        "distributed_engines::test_half_precision_trains_as_torch_does_under_the_same_engine"
    ),
    "distributed checkpoint": _trained(
        "distributed_checkpoint::test_training_goes_on_from_a_checkpoint_in_one_process"
    ),
    "training in lockstep": _trained("distributed_demo::test_engine_agrees_with_one_process"),
}
STREAMS = {
    "CUDA graphs": "gpu_graphs::test_graph_replays_with_new_values",
    "graphed callables": "gpu_graphs::test_graphed_callable_answers_new_values",
    "graphed networks": (
        _trained("gpu_graphs::test_graphed_network_trains_as_torchs"),
        _trained("gpu_graphs::test_network_of_graphed_blocks_gives_what_torchs_gives"),
    ),
    "streams": "gpu::test_call_waits_its_turn_on_the_current_stream",
    "a stream for each thread": _shared("gpu::test_threads_on_streams_of_their_own_compute_side_by_side"),
    "streams that join": "gpu_graphs::test_branches_on_streams_of_their_own_join",
    "a network on two GPUs": _trained("gpu_graphs::test_network_on_two_devices_trains_as_torchs"),
    "another device than the current": "gpu::test_tensors_on_another_than_the_current_device",
    "operands on two devices": "gpu::test_tensors_on_two_devices_have_torchs_outcome",
}
HARDWARE = {
    **{
        f"compiled for {target}": _ours(f"offline::test_forward_and_backward_build_for_every_gpu[{target}]")
        for target in ("cuda:80", "cuda:90", "cuda:100", "cuda:120", "hip:gfx942")
    },
    "code audited for an H100": _ours("audit::test_usual_calls_cost_what_they_must"),
    "errors in ulp": "gpu::test_errors_are_no_larger_than_torchs",
    "autocast on a GPU": "gpu::test_autocast_casts_as_torchs",
    "offsets past 2^31": "gpu::test_views_whose_offsets_pass_31_bits_are_read",
    "elements past 2^31": (
        _shared("gpu::test_more_elements_than_31_bits_count", on="relu add sub sum"),
        _shared("gpu::test_mean_over_one_axis_of_more_elements_than_31_bits_count", on="mean"),
        _shared("gpu::test_gradient_summed_over_more_elements_than_31_bits_count", on="mul"),
    ),
    "compute-sanitizer": _shared("sanitizer::test_sanitizer_finds_nothing", on="exp relu add sub mul pow mean sum"),
}
SECTIONS: dict[str, dict[str, Checks]] = {
    "Calls": CALLS,
    "Dtypes": DTYPES,
    "Layouts": LAYOUTS,
    "torch.func": TRANSFORMS,
    "Forward mode": FORWARD_MODE,
    "Higher orders": ORDERS,
    "Compiled, exported": COMPILED,
    "Autograd: checkpoints, saved tensors, hooks": HOOKS,
    "Autograd: engine, graph, processes": ENGINE,
    "Precision": PRECISION,
    "Other tensors": TENSORS,
    "Distributed": DISTRIBUTED,
    "CUDA graphs and streams": STREAMS,
    "Hardware": HARDWARE,
}
FEATURES = {section: {name: _checks(value) for name, value in rows.items()} for section, rows in SECTIONS.items()}
CHECKS = {str(check): check for rows in FEATURES.values() for checks in rows.values() for check in checks}

# The operators that a feature has no sense for: torch has no such call, or it takes two tensors.
_TWINLESS = tuple(name for name in OPERATORS if not hasattr(customops, f"{name}_"))
_NOT_BINARY = tuple(row.name for row in ROWS if row.calls[0].arity == 1)
INAPPLICABLE = {
    "`out=`": ("relu",),
    **dict.fromkeys(("in-place twin", "refused in place", "in place, transformed", "in place, dual"), _TWINLESS),
    **dict.fromkeys(("anomaly mode, in place", "grad modes, in place", "in place, through a view"), _TWINLESS),
    **dict.fromkeys(("vmap of vmap, other axes", "tangents of mixed dtypes"), _NOT_BINARY),
    **dict.fromkeys(("large, by blocks", "operands on two devices"), _NOT_BINARY),
    "symbolic sizes": (*_NOT_BINARY, "maximum", "minimum"),  # these take no numbers
}
# Features near which ours differs from torch, in what no test here compares; docs/limits.md says how.
LIMITED = (
    *("values, database", "0, -0, inf, nan, 1e30", "in-place twin", "odd arguments", "uint16", "float8"),
    *("with gradients, both ways", "programs, and refused ones", "jit.script", "a saved tensor changed"),
    *("hooks of tensors, nodes", "anomaly mode", "every kind of cotangent", "nodes walked", "saved tensors read"),
)
