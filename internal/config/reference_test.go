package config

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/route"
)

var update = flag.Bool("update", false, "write docs/configuration.md")

const referenceFile = "../../docs/configuration.md"

// TestReferenceIsCurrent holds docs/configuration.md to what the schema says:
// it is made of the field comments and the defaults.
func TestReferenceIsCurrent(t *testing.T) {
	r := reference{t: t, docs: map[string]map[string]string{}}
	r.b.WriteString(referenceHead)
	f := Default()
	var p Pool
	p.setDefaults()
	var v Variant
	v.setDefaults()
	var s Store
	s.setDefaults()
	p.Endpoints, p.Variants, p.KV.Stores = []Endpoint{{}}, []Variant{v}, []Store{s}
	f.Pools = []Pool{p}
	f.Objectives, f.Accelerators = []Objective{{}}, []Accelerator{{}}
	r.table("", reflect.ValueOf(f))
	fmt.Fprintf(&r.b, "\nDialects: %s. Policies: %s. Scorers of `weighted`: %s.\n",
		strings.Join(engine.DialectNames(), ", "), strings.Join(route.Names(), ", "), strings.Join(route.ScorerNames(), ", "))
	if *update {
		if err := os.WriteFile(referenceFile, []byte(r.b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(referenceFile)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != r.b.String() {
		t.Error("docs/configuration.md is out of date: go test ./internal/config -run Reference -update")
	}
}

const referenceHead = `# The Fleet file

Generated from the schema; do not edit. ` + "`penstock check FILE`" + ` reports every problem of a
file at once, each with the path of its field. Unknown fields are refused.
Durations are written with a unit: ` + "`500ms`, `2m`" + `. A change needs a restart.

| field | default | meaning |
|---|---|---|
`

type reference struct {
	t    *testing.T
	b    strings.Builder
	docs map[string]map[string]string // package path -> "Type.Field" -> comment
}

func (r *reference) table(path string, v reflect.Value) {
	for i := range v.NumField() {
		f, fv := v.Type().Field(i), v.Field(i)
		if f.Anonymous {
			r.table(path, fv)
			continue
		}
		if !f.IsExported() {
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		at := join(path, name)
		doc := r.doc(v.Type(), f.Name)
		switch {
		case f.Type.Kind() == reflect.Struct:
			r.row(at, "", doc)
			r.table(at, fv)
		case f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct:
			r.row(at+"[]", "", doc)
			r.table(at+"[]", fv.Index(0))
		default:
			r.row(at, value(fv), doc)
		}
	}
}

func (r *reference) row(path, def, doc string) {
	fmt.Fprintf(&r.b, "| `%s` | %s | %s |\n", path, def, doc)
}

func value(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case time.Duration:
		if x != 0 {
			s := x.String()
			if short, ok := strings.CutSuffix(s, "m0s"); ok {
				s = short + "m" // 1m reads better than 1m0s
			}
			return "`" + s + "`"
		}
		return ""
	case string:
		if x == "" {
			return ""
		}
	}
	if v.IsZero() || v.Kind() == reflect.Map {
		return ""
	}
	return fmt.Sprintf("`%v`", v.Interface())
}

// doc returns the comment of a struct's field, on one line.
func (r *reference) doc(typ reflect.Type, field string) string {
	pkg := typ.PkgPath()
	if r.docs[pkg] == nil {
		r.docs[pkg] = comments(r.t, filepath.Join("..", "..", strings.TrimPrefix(pkg, "penstock.dev/penstock/")))
	}
	d := r.docs[pkg][typ.Name()+"."+field]
	if d == "" {
		r.t.Errorf("field %s.%s has no comment", typ, field)
	}
	return d
}

func comments(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no sources in %s: %v", dir, err)
	}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			st, ok := spec.Type.(*ast.StructType)
			if !ok {
				return true
			}
			for _, field := range st.Fields.List {
				text := field.Doc.Text() + field.Comment.Text()
				for _, name := range field.Names {
					out[spec.Name.Name+"."+name.Name] = strings.ReplaceAll(strings.Join(strings.Fields(text), " "), "|", "\\|")
				}
			}
			return true
		})
	}
	return out
}
