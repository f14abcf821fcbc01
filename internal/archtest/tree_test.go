package archtest

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// modulePath begins the import path of every package of this module.
const modulePath = "penstock.dev/penstock/"

// tree is a module's source as the rules see it.
type tree struct {
	fset  *token.FileSet
	files []*file           // Go files
	texts map[string][]byte // every text file by path, Go files too
}

// file is one parsed Go file.
type file struct {
	path    string // from the module's root, with slashes
	room    string // the package: "route", "enginesim/server", "cmd/penstock"
	test    bool
	syntax  *ast.File
	imports []imported
}

// imported is one import of a file.
type imported struct {
	path string
	name string // what the file calls it
	pos  token.Pos
}

// load parses the module whose root is dir.
func load(t *testing.T, dir string) *tree {
	t.Helper()
	tr := &tree{fset: token.NewFileSet(), texts: map[string][]byte{}}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if slices.Contains([]string{".git", "dist", "node_modules"}, d.Name()) {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || d.Name() == ".git" {
			return nil // in a work tree .git is a file that names another folder
		}
		content, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		return tr.add(filepath.ToSlash(rel), content)
	})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// parse makes a tree of the files in sources, by path.
func parse(t *testing.T, sources map[string]string) *tree {
	t.Helper()
	tr := &tree{fset: token.NewFileSet(), texts: map[string][]byte{}}
	for p, content := range sources {
		if err := tr.add(p, []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

// add takes in one file. Binary files are no concern of any rule.
func (t *tree) add(p string, content []byte) error {
	if bytes.IndexByte(content, 0) >= 0 {
		return nil
	}
	t.texts[p] = content
	if !strings.HasSuffix(p, ".go") || strings.Contains("/"+p, "/testdata/") {
		return nil
	}
	syntax, err := parser.ParseFile(t.fset, p, content, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	f := &file{path: p, room: strings.TrimPrefix(path.Dir(p), "internal/"), test: strings.HasSuffix(p, "_test.go"), syntax: syntax}
	for _, s := range syntax.Imports {
		im := imported{pos: s.Pos()}
		if im.path, err = strconv.Unquote(s.Path.Value); err != nil {
			return err
		}
		im.name = localName(im.path)
		if s.Name != nil {
			im.name = s.Name.Name
		}
		f.imports = append(f.imports, im)
	}
	t.files = append(t.files, f)
	return nil
}

// localName is what a file calls an import it does not rename: the last element
// of its path that is not a major version.
func localName(p string) string {
	name := path.Base(p)
	if strings.HasPrefix(name, "v") && strings.Trim(name[1:], "0123456789") == "" {
		name = path.Base(path.Dir(p))
	}
	return name
}

// code returns the files that are neither tests nor generated.
func (t *tree) code() []*file {
	var out []*file
	for _, f := range t.files {
		if !f.test && !ast.IsGenerated(f.syntax) {
			out = append(out, f)
		}
	}
	return out
}

// in returns the code of one room.
func (t *tree) in(room string) []*file {
	return slices.DeleteFunc(t.code(), func(f *file) bool { return f.room != room })
}

// pure returns the code of the pure rooms.
func (t *tree) pure() []*file {
	return slices.DeleteFunc(t.code(), func(f *file) bool { return !rooms[f.room].pure })
}

// at names a place as editors understand it.
func (t *tree) at(p token.Pos) string {
	pos := t.fset.Position(p)
	return pos.Filename + ":" + strconv.Itoa(pos.Line)
}

// lines returns how many lines n takes.
func (t *tree) lines(n ast.Node) int {
	return t.fset.Position(n.End()).Line - t.fset.Position(n.Pos()).Line + 1
}

// uses calls visit for every name that f takes from the package pkg. Local
// variables that hide a package's name count as the package: rename them.
func (f *file) uses(pkg string, visit func(name string, pos token.Pos)) {
	for _, im := range f.imports {
		if im.path != pkg {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := sel.X.(*ast.Ident); ok && x.Name == im.name {
					visit(sel.Sel.Name, sel.Pos())
				}
			}
			return true
		})
	}
}
