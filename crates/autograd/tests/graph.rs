//! Graphs and tapes: what is recorded is what runs, and what cannot be is said.

use ottava_autograd::ops::{BatchNorm2d, Relu};
use ottava_autograd::{Graph, GraphNode, Leaf, Mode, NodeKind, Result, Saving, Tape, Var, trace};
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

/// Operators without parameters are numbered; a module may be called as one of them.
#[test]
fn numbers_do_not_take_the_name_of_a_module() {
    let leaf = |value| Leaf::param(Tensor::full(&[3], value));
    let leaves = [("relu.1.bias".to_owned(), leaf(1.0)), ("relu.2.bias".to_owned(), leaf(2.0))];
    let graph = trace(&leaves, &example(), |x| {
        let bias = |i: usize| x.tape().leaf(&leaves[i].1);
        // One comes before the operator of its name, one behind.
        x.add(bias(0))?.relu()?.relu()?.add(bias(1))?.relu()
    });
    let names = Vec::from_iter(graph.unwrap().nodes().iter().map(|node| node.name.clone()));
    let mut unique = names.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), names.len(), "{names:?}");
    assert!(["relu.1.bias", "relu.2.bias"].iter().all(|name| names.contains(&(*name).to_owned())));
}

/// A BatchNorm that runs twice moves its statistics twice, in a graph as on a tape, in parts or whole.
#[test]
fn a_buffer_read_twice_moves_twice() {
    let leaves = || {
        let leaf = |make: fn(Tensor<f32>) -> Leaf, value| make(Tensor::full(&[3], value));
        [
            leaf(Leaf::param, 1.0),
            leaf(Leaf::param, 0.5),
            leaf(Leaf::buffer, 0.0),
            leaf(Leaf::buffer, 1.0),
        ]
    };
    fn norm<'t>(x: Var<'t>, leaves: &[Leaf; 4]) -> Result<Var<'t>> {
        let [gamma, beta, mean, var] = leaves.each_ref().map(|leaf| x.tape().leaf(leaf));
        x.batch_norm2d(gamma, beta, mean, var, BatchNorm2d::default())
    }
    fn forward<'t>(x: Var<'t>, leaves: &[Leaf; 4]) -> Result<Var<'t>> {
        norm(norm(x, leaves)?.relu()?, leaves)
    }
    let x =
        Tensor::new(&[2, 3, 1, 2], Vec::from_iter((0..12).map(|i| (i * i % 7) as f32))).unwrap();
    let of_tape = leaves();
    let tape = Tape::new(Mode::TRAIN);
    forward(tape.input(x.clone()), &of_tape).unwrap();
    for saving in [Saving::default(), Saving { recompute: true, ..Saving::default() }] {
        let of_graph = leaves();
        let named = std::array::from_fn::<_, 4, _>(|i| (i.to_string(), of_graph[i].clone()));
        let graph = trace(&named, &x, |x| forward(x, &of_graph)).unwrap();
        let tape = Tape::new(Mode::TRAIN).with_saving(saving);
        graph.run(tape.input(x.clone())).unwrap();
        for (graph, tape) in of_graph.iter().zip(&of_tape) {
            assert_eq!(graph.get().to_vec(), tape.get().to_vec());
        }
    }
}
