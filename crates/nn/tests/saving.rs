//! Training with less memory: what stays the same, and how near the rest comes.

use ottava_autograd::{Graph, Mode, Saving, Span, Tape};
use ottava_nn::models::{ModelConfig, build};
use ottava_nn::qat::{QConfig, QConfigMap, prepare};
use ottava_nn::{Network as _, init, trace};
use ottava_tensor::Tensor;

const SHAPE: [usize; 4] = [4, 3, 16, 16];
const RECOMPUTE: Saving = Saving { recompute: true, half: false };
const HALF: Saving = Saving { recompute: false, half: true };

fn images() -> Tensor<f32> {
    init::normal(&SHAPE, 1.0, &mut init::rng(7)).channels_last()
}

fn float(name: &str) -> Graph {
    let model = build(name, &ModelConfig::default()).unwrap();
    trace(&*model, &images()).unwrap()
}

fn quantized(name: &str) -> Graph {
    prepare(&float(name), &QConfigMap::default()).unwrap().graph
}

/// Two steps' losses and gradients, and the buffers after them.
fn steps(graph: &Graph, saving: Saving) -> (Vec<f32>, Vec<Tensor<f32>>, Vec<Tensor<f32>>) {
    let graph = graph.detach();
    let (mut losses, mut gradients) = (Vec::new(), Vec::new());
    for step in 0..2 {
        let tape = Tape::new(Mode::TRAIN).with_saving(saving);
        let x = images().map(|x| x * (1.0 + step as f32));
        let loss = graph.run(tape.input(x)).unwrap().cross_entropy(&[1, 2, 3, 4], 0.0).unwrap();
        losses.push(loss.tensor().item().unwrap());
        let found = loss.backward().unwrap();
        for (name, leaf) in graph.parameters() {
            gradients.push(found.get(&leaf).unwrap_or_else(|| panic!("no {name}")).clone());
        }
    }
    (losses, gradients, graph.state_dict().into_iter().map(|(_, value)| value).collect())
}

#[test]
fn running_twice_changes_nothing() {
    for graph in [float("resnet20"), quantized("resnet20"), float("mobilenet_v2")] {
        assert!(steps(&graph, Saving::default()) == steps(&graph, RECOMPUTE));
    }
    // A learned range is set by the first step's forward pass.
    let learned = QConfigMap::new(QConfig::default().learned());
    let graph = prepare(&float("resnet8"), &learned).unwrap().graph;
    assert!(steps(&graph, Saving::default()) == steps(&graph, RECOMPUTE));
    // Both at once: what is rounded is what each part saves when it runs again.
    let graph = float("resnet8");
    assert!(steps(&graph, HALF) == steps(&graph, Saving { recompute: true, half: true }));
}

/// Each part but the last runs again before its way back, and its operators say so.
#[test]
fn parts_run_again_on_the_way_back() {
    for graph in [float("resnet20"), quantized("resnet20"), float("mobilenet_v2")] {
        let spans = |saving| {
            let tape = Tape::new(Mode::TRAIN).with_saving(saving).with_spans();
            let y = graph.detach().run(tape.input(images())).unwrap();
            let forward = tape.take_spans();
            y.backward_with(Tensor::full(&y.shape(), 1.0));
            (forward, tape.take_spans())
        };
        let ((forward, back), (first, again)) = (spans(Saving::default()), spans(RECOMPUTE));
        let names = |spans: &[Span]| Vec::from_iter(spans.iter().map(|span| span.op));
        assert_eq!(names(&forward), names(&first));
        assert!(back.iter().all(|span| span.backward));
        let (went_back, repeated): (Vec<Span>, Vec<Span>) =
            again.iter().cloned().partition(|span| span.backward);
        assert_eq!(names(&back), names(&went_back));
        // About √n parts, of which the last is as long as another.
        let parts = again.chunk_by(|a, b| a.backward == b.backward).count() / 2;
        let all = forward.len();
        assert!((2..=all / 2).contains(&parts), "{parts} parts of {all}");
        assert!((all / 2..all).contains(&repeated.len()), "{} of {all} again", repeated.len());
    }
}

#[test]
fn halves_change_gradients_by_their_rounding() {
    for graph in [float("resnet20"), quantized("resnet20")] {
        let (losses, full, buffers) = steps(&graph, Saving::default());
        let (same, half, kept) = steps(&graph, HALF);
        assert!(losses == same && buffers == kept, "forward rounds nothing");
        assert!(full != half, "nothing was halved");
        let norm = |x: &Tensor<f32>| x.iter().map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        // Eight bits a value, and what twenty layers add to that on the way back.
        for (full, half) in full.iter().zip(&half) {
            let apart = norm(&full.zip_map("difference", half, |a, b| a - b).unwrap());
            assert!(apart <= 0.05 * norm(full) + 1e-6, "{apart} of {}", norm(full));
        }
    }
}
