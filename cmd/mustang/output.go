// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"text/template"

	"github.com/urfave/cli/v2"
	"sigs.k8s.io/yaml"
)

// output is how a command was asked to print.
type output struct {
	form     string // table, wide, json, yaml
	template *template.Template
	quiet    bool
	w        io.Writer
}

// The forms of -o.
var (
	listForms    = []string{"table", "wide", "json", "yaml"}
	inspectForms = []string{"json", "yaml"}
)

// listed is what there is to print.
type listed[T any] struct {
	items []T
	table func(wide bool) table
	key   func(T) string // what -q prints; nil prints nothing
}

// outputFlags are the flags of commands that print one of forms, of which the first is the default.
func outputFlags(forms []string) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: forms[0], Usage: "print as `FORM`: " + strings.Join(forms, ", ")},
		&cli.StringFlag{Name: "format", Usage: "print each item by a Go `TEMPLATE`, such as '{{json .}}'"},
	}
}

func quietFlag(usage string) cli.Flag {
	return &cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: usage, DisableDefaultText: true}
}

// outputOf reads the flags made by outputFlags and quietFlag, before anything is asked of the Host.
func outputOf(c *cli.Context, e env, forms []string) (output, error) {
	o := output{form: c.String("output"), quiet: c.Bool("quiet"), w: e.stdout}
	if !slices.Contains(forms, o.form) {
		return o, usagef(c, "--output %q: choose among %s", o.form, strings.Join(forms, ", "))
	}
	var given []string
	for _, name := range []string{"output", "format", "quiet"} {
		if c.IsSet(name) {
			given = append(given, "--"+name)
		}
	}
	if len(given) > 1 {
		return o, usagef(c, "%s exclude each other: give one of them", strings.Join(given, " and "))
	}
	if text := c.String("format"); text != "" {
		parsed, err := template.New("--format").Funcs(template.FuncMap{"json": inlineJSON, "join": join}).Parse(text)
		if err != nil {
			return o, usagef(c, "--format: %w", err)
		}
		o.template = parsed
	}
	return o, nil
}

func inlineJSON(v any) (string, error) {
	text, err := json.Marshal(v)
	return string(text), err
}

func join(list []string, separator string) string { return strings.Join(list, separator) }

// printList prints items in the form that was asked for.
func printList[T any](o output, l listed[T]) error {
	switch {
	case o.template != nil:
		for _, item := range l.items {
			if err := o.execute(item); err != nil {
				return err
			}
		}
		return nil
	case o.quiet:
		for _, item := range l.items {
			if l.key == nil {
				break
			}
			if _, err := fmt.Fprintln(o.w, l.key(item)); err != nil {
				return err
			}
		}
		return nil
	case o.form == "json" || o.form == "yaml":
		items := l.items
		if items == nil {
			items = []T{}
		}
		return o.encode(items)
	}
	return l.table(o.form == "wide").write(o.w)
}

// encode prints v as JSON or YAML.
func (o output) encode(v any) error {
	if o.form == "yaml" {
		text, err := yaml.Marshal(v)
		if err != nil {
			return fmt.Errorf("print as YAML: %w", err)
		}
		_, err = o.w.Write(text)
		return err
	}
	e := json.NewEncoder(o.w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// fieldsOf are what a template can name of an item.
func fieldsOf(item any) (names []string) {
	t := reflect.TypeOf(item)
	if t.Kind() != reflect.Struct {
		return nil
	}
	for _, f := range reflect.VisibleFields(t) {
		if f.IsExported() && !f.Anonymous {
			names = append(names, "."+f.Name)
		}
	}
	return names
}

func (o output) execute(item any) error {
	var line strings.Builder
	if err := o.template.Execute(&line, item); err != nil {
		return fmt.Errorf("print by --format: %w: an item has %s: use these, or see {{json .}}", err, strings.Join(fieldsOf(item), ", "))
	}
	_, err := fmt.Fprintln(o.w, line.String())
	return err
}
