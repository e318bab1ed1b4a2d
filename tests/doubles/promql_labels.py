"""Which labels the result of a PromQL query has, and whether each label that it names exists.

A typo in a label makes a query that parses and finds nothing. So the labels of every metric are
followed through the query, as types are through a program.
"""

import promql_parser as promql

# Of every target: Prometheus' own, and those by which servers are told apart, as Pods are labelled.
TARGET = frozenset({"job", "instance", "server", "namespace", "pod", "app", "version"})


class UnknownNameError(Exception):
    """A query names a metric or a label that does not exist."""


def labels_of(expression, known):
    """Returns the labels of a query's result.

    Args:
        expression: The query.
        known: The labels of each series, by its name.

    Raises:
        UnknownNameError: A metric or a label does not exist.
    """
    return _of(promql.parse(expression), known)


def _of(node, known):
    def of(each):
        return _of(each, known)

    def need(wanted, given, where):
        missing = set(wanted) - set(given)
        if missing:
            raise UnknownNameError(f"{where}: no label {', '.join(sorted(missing))}")

    match node:
        case promql.NumberLiteral() | promql.StringLiteral():
            return frozenset()
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            return of(node.expr)
        case promql.MatrixSelector():
            return of(node.vector_selector)
        case promql.VectorSelector():
            if node.name not in known:
                raise UnknownNameError(f"no metric {node.name}")
            given = frozenset(known[node.name]) | TARGET
            need((each.name for each in node.matchers.matchers), given, node.name)
            return given
        case promql.AggregateExpr():
            return _of_aggregate(node, of, need)
        case promql.Call():
            return _of_call(node, of, need)
        case promql.BinaryExpr():
            return _of_binary(node, of, need)
        case _:
            raise NotImplementedError(type(node).__name__)


def _of_aggregate(node, of, need):
    given = of(node.expr)
    if node.modifier is None:
        return frozenset()
    labels = frozenset(node.modifier.labels)
    need(labels, given, node.prettify())
    return labels if "By" in str(node.modifier.type) else given - labels


def _of_call(node, of, need):
    given = [of(each) for each in node.args]
    match node.func.name:
        case "label_replace":
            target, _, source, _ = (each.val for each in node.args[1:])
            need([source], given[0], node.prettify())
            return given[0] | {target}
        case "histogram_quantile":
            need(["le"], given[1], node.prettify())
            return given[1] - {"le"}
        case "vector" | "time":
            return frozenset()
    return given[0]


def _of_binary(node, of, need):
    left, right = of(node.lhs), of(node.rhs)
    modifier = node.modifier
    matching = None if modifier is None else modifier.matching
    if matching is not None and "Include" in str(matching.type):
        for side in (left, right):
            need(matching.labels, side, node.prettify())
    if modifier is not None and modifier.group_labels:
        need(modifier.group_labels, right, node.prettify())
        return left | set(modifier.group_labels)
    return left or right
