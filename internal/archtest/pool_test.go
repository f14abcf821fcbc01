package archtest

import (
	"fmt"
	"go/ast"
	"go/token"
	"maps"
	"slices"
	"strings"
)

// poolEvents returns the event types of pool and where each is declared.
func (t *tree) poolEvents() map[string]token.Pos {
	events := map[string]token.Pos{}
	for _, f := range t.in("pool") {
		for _, d := range f.syntax.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Name.Name == "isEvent" && fn.Recv != nil {
				events[receiver(fn)] = fn.Pos()
			}
		}
	}
	return events
}

// receiver returns the name of the type that fn is a method of.
func receiver(fn *ast.FuncDecl) string {
	if fn.Recv == nil {
		return ""
	}
	return root(fn.Recv.List[0].Type)
}

// checkPoolHandlers holds pool to one handler on<Event> per event, called by Step
// and nobody else, and no handler without an event.
func checkPoolHandlers(t *tree) []string {
	events := t.poolEvents()
	handlers, calls := map[string][]token.Pos{}, map[string]int{}
	var out []string
	for _, f := range t.in("pool") {
		for _, d := range f.syntax.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if event, ok := handles(fn.Name.Name); ok && receiver(fn) == "Brain" {
				handlers[event] = append(handlers[event], fn.Pos())
			}
			ast.Inspect(fn, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				sel, ok := call.Fun.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				event, ok := handles(sel.Sel.Name)
				switch {
				case !ok:
				case fn.Name.Name == "Step" && receiver(fn) == "Brain":
					calls[event]++
				default:
					out = append(out, fmt.Sprintf("%s: %s calls the handler on%s; only Step may", t.at(call.Pos()), fn.Name.Name, event))
				}
				return true
			})
		}
	}
	for _, event := range slices.Sorted(maps.Keys(events)) {
		if n := len(handlers[event]); n != 1 {
			out = append(out, fmt.Sprintf("%s: event %s has %d handlers, want one method on%s of Brain", t.at(events[event]), event, n, event))
		}
		if n := calls[event]; n != 1 {
			out = append(out, fmt.Sprintf("%s: Step calls on%s %d times, want once", t.at(events[event]), event, n))
		}
	}
	for _, event := range slices.Sorted(maps.Keys(handlers)) {
		if _, ok := events[event]; !ok {
			out = append(out, fmt.Sprintf("%s: on%s handles no event", t.at(handlers[event][0]), event))
		}
	}
	return out
}

// handles returns the event that a method of this name would handle.
func handles(name string) (string, bool) {
	event, ok := strings.CutPrefix(name, "on")
	return event, ok && event != "" && ast.IsExported(event)
}

// poolNumbers are the numbers that pool may write: counting, emptiness and the
// marks of where a request is.
var poolNumbers = strings.Fields("0 1 2")

// checkPoolNumbers finds numbers in pool, outside its encoding.
func checkPoolNumbers(t *tree) []string {
	var out []string
	for _, f := range t.in("pool") {
		if strings.HasSuffix(f.path, "/codec.go") {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if ok && (lit.Kind == token.INT || lit.Kind == token.FLOAT) && !slices.Contains(poolNumbers, lit.Value) {
				out = append(out, fmt.Sprintf("%s: pool knows the number %s", t.at(lit.Pos()), lit.Value))
			}
			return true
		})
	}
	return out
}

// checkPoolTables finds maps in pool whose key is neither a request nor an
// endpoint.
func checkPoolTables(t *tree) []string {
	var out []string
	for _, f := range t.in("pool") {
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			m, ok := n.(*ast.MapType)
			if !ok {
				return true
			}
			key := ""
			if sel, ok := m.Key.(*ast.SelectorExpr); ok {
				key = sel.Sel.Name
			}
			if key != "ReqID" && key != "EndpointID" {
				out = append(out, fmt.Sprintf("%s: pool keeps a table of something other than requests and endpoints", t.at(m.Pos())))
			}
			return true
		})
	}
	return out
}
