// SPDX-License-Identifier: Apache-2.0

// Package errors finds the texts of mustang's errors in its source, and holds them to what a user needs.
package errors

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Text is an error of ours, as its format.
type Text struct {
	Format string
	Dir    string // of the package
	Where  string // file:line
}

// makers are the functions that make errors, with the place of the format among their arguments.
var makers = map[string]int{
	"fmt.Errorf": 0, "errors.New": 0, "invalidf": 0, "conflictf": 0, "usagef": 1, "types.NewError": 1, "problem": 0,
	"r.bad": 2,
}

// Find lists the errors of a package: those that say something of their own, and not only what was being done when another came.
func Find(dir string) ([]Text, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	set := token.NewFileSet()
	var out []Text
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(set, file, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			at, known := makers[name(call.Fun)]
			if !known || at >= len(call.Args) {
				return true
			}
			for _, format := range literals(call.Args[at]) {
				if says(format) {
					p := set.Position(call.Pos())
					out = append(out, Text{format, dir, fmt.Sprintf("%s:%d", p.Filename, p.Line)})
				}
			}
			return true
		})
	}
	slices.SortFunc(out, func(a, b Text) int { return cmp.Compare(a.Format, b.Format) })
	return slices.CompactFunc(out, func(a, b Text) bool { return a.Format == b.Format }), nil
}

func name(fun ast.Expr) string {
	switch f := fun.(type) {
	case *ast.Ident:
		return f.Name
	case *ast.SelectorExpr:
		if x, ok := f.X.(*ast.Ident); ok {
			return x.Name + "." + f.Sel.Name
		}
	}
	return ""
}

// literals are the texts that an expression is made of, joined as the source joins them; what is not written there stands as …
func literals(e ast.Expr) []string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if text, err := strconv.Unquote(e.Value); err == nil {
			return []string{text}
		}
	case *ast.BinaryExpr:
		left, right := literals(e.X), literals(e.Y)
		if len(left) == 1 && len(right) == 1 {
			return []string{left[0] + right[0]}
		}
	case *ast.CallExpr:
		if name(e.Fun) == "fmt.Sprintf" {
			return literals(e.Args[0])
		}
	}
	return []string{"…"}
}

var (
	verbs   = regexp.MustCompile(`%[-+# 0-9.]*[a-zA-Z]`)
	context = regexp.MustCompile(`^[^:]*: %[wv]$`) // what was being done, and another error
)

// says tells whether a format has something to say of its own.
func says(format string) bool {
	return !context.MatchString(format) && regexp.MustCompile(`[a-z]{3}`).MatchString(verbs.ReplaceAllString(format, ""))
}

// advice are the words with which a text says what to do, or what would be right.
var advice = regexp.MustCompile(`(?i)\b(choose|give|use|remove|leave|stop|start|want|must|see|run|set|keep|name|make|write|end|try|report|needs?|merge|widen|` +
	`create|lists?|at most|did you mean|goes with|mount|restart|wait|put|add|only|first|has no method|install|look|load|ask|neither may|the options are)\b`)

// Advises tells whether a text says what to do.
func (t Text) Advises() bool { return advice.MatchString(verbs.ReplaceAllString(t.Format, "…")) }

// fragment is the longest part of a text that has no blanks to fill in, by which a test can name it.
func (t Text) fragment() string {
	longest := ""
	for _, part := range verbs.Split(t.Format, -1) {
		if part = strings.Trim(part, " :,\"'()[]="); len(part) > len(longest) {
			longest = part
		}
	}
	return longest
}
