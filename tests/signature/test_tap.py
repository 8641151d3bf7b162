import re
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ilis_guard.errors import SignatureError
from ilis_guard.signature import Tap, TapPoint

pytestmark = pytest.mark.usefixtures("real_model")


def linears(count: int = 3, width: int = 4) -> list[nn.Module]:
    return [nn.Linear(width, width) for _ in range(count)]


def points(modules: list[nn.Module]) -> list[TapPoint]:
    return [
        TapPoint(layer=layer, site="mlp", path=f"layers.{layer}.mlp", module=module)
        for layer, module in enumerate(modules)
    ]


def hooks(modules: list[nn.Module]) -> int:
    return sum(len(module._forward_hooks) for module in modules)


class Returns(nn.Module):
    def __init__(self, make: Callable[[Tensor], object]) -> None:
        super().__init__()
        self._make = make

    def forward(self, inputs: Tensor) -> object:
        return self._make(inputs)


def test_only_the_last_position_is_kept() -> None:
    modules = linears()
    inputs = torch.randn(2, 5, 4)
    with Tap(points(modules)) as tap, torch.inference_mode():
        outputs = [module(inputs) for module in modules]
        found = tap.take()
    assert found.shape == (1, 2, 1, 3, 4)
    for layer, output in enumerate(outputs):
        assert torch.equal(found[0, :, 0, layer], output[:, -1])


def test_as_many_newest_positions_are_kept_as_asked_for() -> None:
    modules = linears()
    inputs = torch.randn(2, 5, 4)
    with Tap(points(modules), newest=3) as tap, torch.inference_mode():
        outputs = [module(inputs) for module in modules]
        assert torch.equal(tap.take()[0], torch.stack(outputs, dim=2)[:, -3:])


@pytest.mark.parametrize("length", [1, 5])
def test_tokens_that_a_module_gives_flat_are_put_back_into_their_rows(length: int) -> None:
    module = Returns(lambda inputs: (2 * inputs.flatten(0, 1), "router logits"))
    inputs = torch.randn(3, length, 4)
    with Tap(points([module])) as tap, torch.no_grad():
        for _ in range(2):
            module(inputs)
            assert torch.equal(tap.take()[0, :, 0, 0], 2 * inputs[:, -1])


def test_a_module_that_runs_twice_in_a_pass_is_refused() -> None:
    module = linears(1)[0]
    with Tap(points([module])) as tap:
        module(torch.randn(1, 1, 4))
        module(torch.randn(1, 1, 4))
        with pytest.raises(SignatureError, match=r"'layers.0.mlp' ran 2 times in one pass"):
            tap.take()


def test_output_changed_in_place_later_is_kept_unchanged() -> None:
    modules = linears()
    with Tap(points(modules)) as tap, torch.no_grad():
        for _ in range(3):
            outputs = [module(torch.randn(2, 1, 4)) for module in modules]
            expected = torch.stack([output.clone() for output in outputs], dim=2)
            for output in outputs:
                output.add_(1)  # as Falcon does
            assert torch.equal(tap.take()[0], expected)


@pytest.mark.parametrize("shared", [False, True])
def test_output_in_a_reused_buffer_is_kept_unchanged(shared: bool) -> None:
    def custom_kernel(buffer: Tensor) -> nn.Module:
        return Returns(lambda inputs: (buffer.data.copy_(inputs), buffer)[1])  # no version tells

    buffers = [torch.zeros(2, 1, 4) for _ in range(3)]
    modules = [custom_kernel(buffers[0 if shared else at]) for at in range(3)]
    passes = torch.randn(5, 2, 1, 3, 4)
    with Tap(points(modules)) as tap, torch.no_grad():
        tap.make_room(5)
        for inputs in passes:
            for layer, module in enumerate(modules):
                module(inputs[:, :, layer])
        assert torch.equal(tap.take(5), passes)


def test_module_may_change_its_own_output_in_place_repeatedly() -> None:
    module = Returns(lambda inputs: [inputs.add_(1) for _ in range(int(inputs.max()) + 1)][-1])
    with Tap(points([module])) as tap, torch.no_grad():
        tap.make_room(6)
        outputs = [module(torch.full((2, 1, 4), float(times))).clone() for times in (0, 0, 2, 1, 3, 0)]
        assert torch.equal(tap.take(6)[:, :, :, 0], torch.stack(outputs))


def test_several_passes_are_taken_at_once_in_their_order() -> None:
    modules = linears()
    with Tap(points(modules)) as tap, torch.no_grad():
        tap.make_room(5)
        for count in (5, 3, 4):
            passes = [torch.stack([module(torch.randn(2, 1, 4)) for module in modules], dim=2) for _ in range(count)]
            assert torch.equal(tap.take(count), torch.stack(passes))


def test_of_several_passes_each_must_have_run_every_module() -> None:
    modules = linears()
    with Tap(points(modules)) as tap, torch.no_grad():
        tap.make_room(2)
        for module in [*modules, modules[0], modules[2]]:
            module(torch.randn(2, 1, 4))
        with pytest.raises(SignatureError, match=r"no activation came from layer 1 \(of 3"):
            tap.take(2)


def test_more_passes_than_there_is_room_for_are_refused() -> None:
    modules = linears()
    with Tap(points(modules)) as tap, torch.no_grad():
        tap.make_room(2)
        for _ in range(3):
            for module in modules:
                module(torch.randn(2, 1, 4))
        with pytest.raises(SignatureError, match="ran 3 times in 2 passes"):
            tap.take(2)


def test_a_pass_that_skips_a_module_and_runs_another_twice_is_refused() -> None:
    modules = linears()
    with Tap(points(modules)) as tap, torch.no_grad():
        for module in [modules[0], modules[0], modules[2]]:
            module(torch.randn(2, 1, 4))
        with pytest.raises(SignatureError, match=r"no activation came from layer 1 \(of 3"):
            tap.take()


def test_modules_may_run_in_any_order() -> None:
    modules = linears()
    inputs = torch.randn(2, 1, 4)
    with Tap(points(modules)) as tap, torch.no_grad():
        for _ in range(3):
            outputs = {at: modules[at](inputs) for at in (2, 0, 1)}
            assert torch.equal(tap.take()[0], torch.stack([outputs[at] for at in range(3)], dim=2))


def test_a_batch_that_changes_between_passes_is_refused() -> None:
    modules = linears()
    with Tap(points(modules)) as tap, torch.no_grad():
        tap.make_room(2)
        for module in modules:
            module(torch.randn(2, 1, 4))
        with pytest.raises(SignatureError, match=r"'layers.0.mlp' gave \[3, 1, 4\], and before it was \[2, 1, 4\]"):
            modules[0](torch.randn(3, 1, 4))


def test_batch_size_may_change_after_take() -> None:
    modules = linears()
    with Tap(points(modules)) as tap, torch.no_grad():
        for rows in (2, 3, 1, 1, 2):
            inputs = torch.randn(rows, 1, 4)
            outputs = [module(inputs) for module in modules]
            assert torch.equal(tap.take()[0], torch.stack(outputs, dim=2))


@pytest.mark.parametrize("length", [1, 4])
def test_a_longer_pass_after_short_ones_shows_its_newest_position(length: int) -> None:
    modules = linears()
    with Tap(points(modules)) as tap, torch.no_grad():
        for tokens in (1, 1, 1, length, 1):
            outputs = [module(torch.randn(2, tokens, 4)) for module in modules]
            assert torch.equal(tap.take()[0], torch.stack(outputs, dim=2)[:, -1:])


def test_no_output_is_held_on_to() -> None:
    modules = linears()
    with Tap(points(modules)) as tap, torch.no_grad():
        for _ in range(4):
            outputs = [weakref.ref(module(torch.randn(2, 1, 4))) for module in modules]
            tap.take()
            assert [output() for output in outputs] == [None] * 3


def test_tap_records_only_the_thread_that_entered() -> None:
    modules = linears()
    inputs = torch.randn(2, 3, 4)
    with Tap(points(modules)) as tap, torch.inference_mode():
        expected = torch.stack([module(inputs) for module in modules], dim=2)[:, -1:]

        def disturb() -> None:
            for module in modules:
                module(torch.randn(5, 1, 4))

        other = threading.Thread(target=disturb)
        other.start()
        other.join()
        assert torch.equal(tap.take()[0], expected)


def test_hooks_are_there_inside_and_gone_after() -> None:
    modules = linears()
    with Tap(points(modules)):
        assert hooks(modules) == 3
    assert hooks(modules) == 0


def test_hooks_are_gone_after_an_exception_inside() -> None:
    modules = linears()
    with pytest.raises(ZeroDivisionError), Tap(points(modules)):
        raise ZeroDivisionError
    assert hooks(modules) == 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_hooks_are_gone_after_an_exception_while_they_are_set(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = linears()

    def refuse(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(modules[2], "register_forward_hook", refuse)
    with pytest.raises(error), Tap(points(modules)):
        pytest.fail("the tap was entered though a hook couldn't be set")
    assert hooks(modules) == 0


def test_other_peoples_hooks_stay() -> None:
    modules = linears()
    modules[1].register_forward_hook(lambda *_: None)
    with Tap(points(modules)):
        assert hooks(modules) == 4
    assert hooks(modules) == 1


def test_the_output_isnt_changed() -> None:
    module = linears(1)[0]
    inputs = torch.randn(1, 3, 4)
    expected = module(inputs)
    with Tap(points([module])):
        assert torch.equal(module(inputs), expected)


def test_a_second_take_names_the_silent_layers() -> None:
    modules = linears()
    inputs = torch.randn(1, 2, 4)
    with Tap(points(modules)) as tap:
        for module in modules:
            module(inputs)
        tap.take()
        with pytest.raises(SignatureError, match=r"layer 0, 1, 2 \(of 3, counted from 0\)"):
            tap.take()


def test_a_skipped_layer_is_named_and_no_stale_activation_taken() -> None:
    modules = linears()
    inputs = torch.randn(1, 2, 4)
    with Tap(points(modules)) as tap:
        for module in modules:
            module(inputs)
        tap.take()
        modules[0](inputs)
        modules[2](inputs)
        with pytest.raises(SignatureError, match=r"came from layer 1 \(of 3"):
            tap.take()


def test_a_tap_that_is_entered_again_starts_empty() -> None:
    modules = linears(1)
    tap = Tap(points(modules))
    with tap:
        modules[0](torch.randn(1, 2, 4))
    with tap, pytest.raises(SignatureError, match="layer 0"):
        tap.take()


def test_the_first_of_a_tuple_is_the_output() -> None:
    experts = Returns(lambda inputs: (inputs * 2, torch.zeros(1)))
    inputs = torch.randn(2, 3, 4)
    with Tap(points([experts])) as tap:
        experts(inputs)
        assert torch.equal(tap.take()[0, :, 0, 0], inputs[:, -1] * 2)


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda inputs: inputs[:, 0], "[2, 4]"),
        (lambda inputs: (inputs.flatten(1, 2), None), "[2, 12]"),
        (lambda inputs: {"hidden": inputs}, "'dict'"),
        (lambda _inputs: None, "'NoneType'"),
    ],
)
def test_an_output_of_another_shape_is_refused_with_the_layer(make: Callable[[Tensor], object], got: str) -> None:
    modules: list[nn.Module] = [nn.Linear(4, 4), Returns(make)]
    inputs = torch.randn(2, 3, 4)
    with Tap(points(modules)):
        modules[0](inputs)
        with pytest.raises(SignatureError, match=re.escape(f"'layers.1.mlp' gave {got}, expected [batch")):
            modules[1](inputs)
    assert hooks(modules) == 0


def test_layers_of_different_widths_are_refused() -> None:
    modules: list[nn.Module] = [nn.Linear(4, 4), nn.Linear(4, 6)]
    with Tap(points(modules)):
        modules[0](torch.randn(1, 2, 4))
        with pytest.raises(SignatureError, match=r"'layers.1.mlp' gave \[1, 1, 6\], and before it was \[1, 1, 4\]"):
            modules[1](torch.randn(1, 2, 4))


def test_kept_output_does_not_retain_the_prompts_activations() -> None:
    module = linears(1)[0]
    with Tap(points([module])) as tap, torch.inference_mode():
        output = weakref.ref(module(torch.randn(1, 1000, 4)))
        assert output() is None
        assert tap.take().untyped_storage().nbytes() == 4 * 4


def test_kept_activations_hold_no_graph() -> None:
    module = linears(1)[0]
    with Tap(points([module])) as tap:
        module(torch.randn(1, 2, 4))
        assert not tap.take().requires_grad
