package archtest

import (
	"fmt"
	"go/ast"
	"go/token"
	"slices"
	"strings"
)

// clockFuncs are the functions of package time that read the clock, wait, or
// depend on where the machine stands.
var clockFuncs = strings.Fields("Now Since Until Sleep After AfterFunc Tick NewTimer NewTicker Local LoadLocation")

// checkClock finds pure code that knows what time it is without being told.
func checkClock(t *tree) []string {
	var out []string
	for _, f := range t.pure() {
		f.uses("time", func(name string, pos token.Pos) {
			if slices.Contains(clockFuncs, name) {
				out = append(out, fmt.Sprintf("%s: %s uses time.%s", t.at(pos), f.room, name))
			}
		})
	}
	return out
}

// checkRandom finds draws from the process's own random source. Only making
// generators from seeds is allowed.
func checkRandom(t *tree) []string {
	allowed := strings.Fields("New NewPCG NewChaCha8 NewZipf Rand PCG ChaCha8 Zipf Source")
	var out []string
	for _, f := range t.pure() {
		for _, pkg := range []string{"math/rand", "math/rand/v2"} {
			f.uses(pkg, func(name string, pos token.Pos) {
				if !slices.Contains(allowed, name) {
					out = append(out, fmt.Sprintf("%s: %s uses rand.%s", t.at(pos), f.room, name))
				}
			})
		}
	}
	return out
}

// checkGoroutines finds concurrency in pure code.
func checkGoroutines(t *tree) []string {
	var out []string
	for _, f := range t.pure() {
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			what := ""
			switch n := n.(type) {
			case *ast.GoStmt:
				what = "a go statement"
			case *ast.SelectStmt:
				what = "a select statement"
			case *ast.ChanType:
				what = "a channel"
			case *ast.SendStmt:
				what = "a send"
			case *ast.UnaryExpr:
				if n.Op == token.ARROW {
					what = "a receive"
				}
			}
			if what != "" {
				out = append(out, fmt.Sprintf("%s: %s has %s", t.at(n.Pos()), f.room, what))
			}
			return true
		})
	}
	return out
}

// checkSpeech finds pure code that writes to the process's own output.
func checkSpeech(t *tree) []string {
	var out []string
	for _, f := range t.pure() {
		f.uses("fmt", func(name string, pos token.Pos) {
			if slices.Contains(strings.Fields("Print Printf Println Scan Scanf Scanln"), name) {
				out = append(out, fmt.Sprintf("%s: %s uses fmt.%s", t.at(pos), f.room, name))
			}
		})
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			if name := builtinCall(n); name == "print" || name == "println" {
				out = append(out, fmt.Sprintf("%s: %s uses %s", t.at(n.Pos()), f.room, name))
			}
			return true
		})
	}
	return out
}

// builtinCall returns the name of the plain function that n calls, or "".
func builtinCall(n ast.Node) string {
	if call, ok := n.(*ast.CallExpr); ok {
		if id, ok := call.Fun.(*ast.Ident); ok {
			return id.Name
		}
	}
	return ""
}

// tableMakers are calls that make a value nobody changes afterwards.
var tableMakers = strings.Fields("errors.New fmt.Errorf crc32.MakeTable crc64.MakeTable regexp.MustCompile reflect.TypeFor strings.NewReplacer")

// checkPackageVars finds package variables of pure code that are, or could be,
// state: anything but error values, unexported literal tables and assertions,
// and any of these that is written after it was made.
func checkPackageVars(t *tree) []string {
	var out []string
	tables := map[string][]string{} // room -> unexported variables
	for _, f := range t.pure() {
		for _, d := range f.syntax.Decls {
			gen, ok := d.(*ast.GenDecl)
			if !ok || gen.Tok != token.VAR {
				continue
			}
			for _, s := range gen.Specs {
				spec := s.(*ast.ValueSpec)
				for i, name := range spec.Names {
					if name.Name == "_" {
						continue
					}
					tables[f.room] = append(tables[f.room], name.Name)
					if complaint := judgeVar(spec, i, embedded(gen, spec)); complaint != "" {
						out = append(out, fmt.Sprintf("%s: %s has the package variable %s, %s", t.at(name.Pos()), f.room, name.Name, complaint))
					}
				}
			}
		}
	}
	for _, f := range t.pure() {
		out = append(out, t.writes(f, tables[f.room])...)
	}
	return out
}

// judgeVar says what is wrong with the i-th variable of spec, if anything.
func judgeVar(spec *ast.ValueSpec, i int, embeds bool) string {
	name := spec.Names[i]
	switch {
	case embeds:
		return ""
	case i >= len(spec.Values):
		return "which has no value until somebody writes it"
	}
	value := spec.Values[i]
	if call, ok := value.(*ast.CallExpr); ok {
		maker := callee(call)
		sentinel := maker == "errors.New" || maker == "fmt.Errorf"
		switch {
		case !slices.Contains(tableMakers, maker):
			return "made by a call that may return anything"
		case name.IsExported() && !sentinel:
			return "which any package can change"
		}
		return ""
	}
	if _, ok := value.(*ast.CompositeLit); !ok {
		return "which is no table: make it a constant or a parameter"
	}
	if name.IsExported() {
		return "which any package can change: offer a function"
	}
	return ""
}

// embedded reports whether the build fills spec from a file.
func embedded(gen *ast.GenDecl, spec *ast.ValueSpec) bool {
	for _, doc := range []*ast.CommentGroup{gen.Doc, spec.Doc} {
		if doc != nil {
			for _, c := range doc.List {
				if strings.HasPrefix(c.Text, "//go:embed ") {
					return true
				}
			}
		}
	}
	return false
}

// callee names the function that call calls: "errors.New", "newTable".
func callee(call *ast.CallExpr) string {
	fun := call.Fun
	if index, ok := fun.(*ast.IndexExpr); ok { // reflect.TypeFor[T]
		fun = index.X
	}
	switch fun := fun.(type) {
	case *ast.Ident:
		return fun.Name
	case *ast.SelectorExpr:
		if x, ok := fun.X.(*ast.Ident); ok {
			return x.Name + "." + fun.Sel.Name
		}
	}
	return ""
}

// writes finds the places of f that change one of vars: assignments to it or
// into it, taking its address, delete and clear. A function that declares a
// variable of that name is taken to mean its own.
func (t *tree) writes(f *file, vars []string) []string {
	var out []string
	for _, d := range f.syntax.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Body == nil {
			continue
		}
		own := declared(fn)
		touch := func(e ast.Expr, how string) {
			if name := root(e); name != "" && slices.Contains(vars, name) && !own[name] {
				out = append(out, fmt.Sprintf("%s: %s %s the package variable %s", t.at(e.Pos()), f.room, how, name))
			}
		}
		ast.Inspect(fn.Body, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				for _, left := range n.Lhs {
					touch(left, "writes")
				}
			case *ast.IncDecStmt:
				touch(n.X, "writes")
			case *ast.UnaryExpr:
				if n.Op == token.AND {
					touch(n.X, "takes the address of")
				}
			case *ast.CallExpr:
				if name := builtinCall(n); (name == "delete" || name == "clear") && len(n.Args) > 0 {
					touch(n.Args[0], name+"s in")
				}
			}
			return true
		})
	}
	return out
}

// root returns the variable that an expression like x, x[i].y or *x reaches
// into, or "".
func root(e ast.Expr) string {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x.Name
		case *ast.IndexExpr:
			e = x.X
		case *ast.SliceExpr:
			e = x.X
		case *ast.SelectorExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return ""
		}
	}
}

// declared returns the names that fn declares itself.
func declared(fn *ast.FuncDecl) map[string]bool {
	own := map[string]bool{}
	fields := func(l *ast.FieldList) {
		if l != nil {
			for _, f := range l.List {
				for _, n := range f.Names {
					own[n.Name] = true
				}
			}
		}
	}
	fields(fn.Recv)
	ast.Inspect(fn, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncType:
			fields(n.Params)
			fields(n.Results)
		case *ast.AssignStmt:
			if n.Tok == token.DEFINE {
				for _, e := range n.Lhs {
					own[root(e)] = true
				}
			}
		case *ast.RangeStmt:
			if n.Tok == token.DEFINE {
				for _, e := range []ast.Expr{n.Key, n.Value} {
					if e != nil {
						own[root(e)] = true
					}
				}
			}
		case *ast.ValueSpec:
			for _, name := range n.Names {
				own[name.Name] = true
			}
		}
		return true
	})
	return own
}
