//! Graphs and tapes: what is recorded is what runs, and what cannot be is said.

use ottava_autograd::ops::Relu;
use ottava_autograd::{Graph, GraphNode, Leaf, Mode, NodeKind, Tape, trace};
use ottava_tensor::Tensor;

fn example() -> Tensor<f32> {
    Tensor::new(&[1, 3], [1.0, -2.0, 3.0]).unwrap()
}

/// A branch on a value is recorded as the example went; another input goes the other way.
#[test]
fn a_forward_pass_that_depends_on_values_is_refused() {
    for example in [example(), Tensor::zeros(&[1, 3])] {
        let error = trace(&[], &example, |x| match x.tensor().at(&[0, 0]) >= 0.0 {
            true => x.relu(),
            false => x.add(x),
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("must not depend"), "{error}");
    }
}

/// A network with a NaN is recorded: that is for others to find.
#[test]
fn a_nan_is_no_dependence() {
    let leaf = Leaf::param(Tensor::new(&[3], [f32::NAN, 1.0, 2.0]).unwrap());
    let leaves = [("bias".to_owned(), leaf.clone())];
    let graph = trace(&leaves, &example(), |x| x.add(x.tape().leaf(&leaf))).unwrap();
    assert_eq!(graph.nodes().len(), 3);
}

#[test]
fn variables_of_another_tape_are_refused() {
    let (ours, theirs) = (Tape::new(Mode::TRAIN), Tape::new(Mode::TRAIN));
    let (a, b) = (ours.input(example()), theirs.input(example()));
    let error = a.add(b).unwrap_err().to_string();
    assert!(error.contains("another tape"), "{error}");
}

#[test]
fn an_operator_reads_something() {
    let nodes = vec![
        GraphNode { name: "x".into(), kind: NodeKind::Input(vec![3]) },
        GraphNode { name: "relu".into(), kind: NodeKind::Op(Relu.into(), vec![]) },
    ];
    let error = Graph::new(nodes, 1).unwrap_err().to_string();
    assert!(error.contains("`relu` reads nothing"), "{error}");
}
