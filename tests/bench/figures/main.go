// SPDX-License-Identifier: Apache-2.0

// Command figures turns the samples of tests/bench/run into figures, and prints them beside their targets.
//
// It reads lines of words separated by tabs:
//
//	sample  SERIES  VALUE                        the next value of a series
//	figure  NAME  UNIT  HOW  TARGET  BASELINE    what to make of them, in the order of printing
//	note    TEXT                                 printed above the table
//
// HOW is "median SERIES", "ratio SERIES BASE" or "difference SERIES BASE"; the latter two pair the n-th value of one series with the
// n-th of the other; UNIT is that of the series. TARGET is empty, or one of >= <= < with a number or the name of a figure.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
)

func main() {
	form := flag.String("o", "table", "`FORM`: table or json")
	flag.Parse()
	if err := run(os.Stdin, os.Stdout, *form); err != nil {
		fmt.Fprintln(os.Stderr, "figures:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer, form string) error {
	write, ok := map[string]func(io.Writer, *measurement, []figure) error{"table": printTable, "json": printJSON}[form]
	if !ok {
		return fmt.Errorf("-o %s: choose table or json", form)
	}
	m, err := read(in)
	if err != nil {
		return err
	}
	figures, err := m.figures()
	if err != nil {
		return err
	}
	return write(out, m, figures)
}

func printJSON(out io.Writer, _ *measurement, figures []figure) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(figures)
}

func printTable(out io.Writer, m *measurement, figures []figure) error {
	for _, note := range m.notes {
		fmt.Fprintln(out, note)
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nFIGURE\tVALUE\t95 % INTERVAL\tUNIT\tRUNS\tTARGET\tREACHED\tMEDIANS\tAGAINST")
	for _, f := range figures {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n",
			f.Name, number(f.Value), number(f.Low)+" … "+number(f.High), f.Unit, f.Runs, dash(f.Target), f.verdict(), f.medians(), dash(f.Baseline))
	}
	return t.Flush()
}

// medians are those of the two sides, the figure's own first.
func (f *figure) medians() string {
	if len(f.Medians) != 2 {
		return "-"
	}
	return number(f.Medians[0]) + " / " + number(f.Medians[1]) + " " + f.MediansUnit
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// number keeps the digits that can mean something.
func number(v float64) string {
	switch {
	case v >= 1000 || v <= -1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10 || v <= -10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.3f", v)
}
