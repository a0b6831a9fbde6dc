// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"strings"
	"unicode/utf8"
)

// rulerWidth is the founding article's; scripts and people know the tables by it.
const rulerWidth = 74

// tabStop is what columns are aligned to.
const tabStop = 8

// table is a listing for people, in the founding article's form.
type table struct {
	title   string
	columns []column
	rows    [][]string
}

type column struct {
	title string
	width int // at least, a multiple of tabStop; the last column needs none
}

func (t table) write(w io.Writer) error {
	widths := make([]int, len(t.columns))
	header := make([]string, len(t.columns))
	for i, c := range t.columns {
		widths[i], header[i] = c.width, c.title
		for _, row := range append(t.rows, header) {
			// One column of space at least, then on to the next tab stop.
			for utf8.RuneCountInString(row[i]) >= widths[i] && i < len(t.columns)-1 {
				widths[i] += tabStop
			}
		}
	}
	var b strings.Builder
	line := func(cells []string) {
		var l strings.Builder
		for i, cell := range cells {
			l.WriteString(cell)
			l.WriteString(strings.Repeat(" ", max(0, widths[i]-utf8.RuneCountInString(cell))))
		}
		b.WriteString(strings.TrimRight(l.String(), " "))
		b.WriteByte('\n')
	}
	ruler := strings.Repeat("=", rulerWidth) + "\n"
	b.WriteString(ruler + t.title + "\n" + ruler)
	line(header)
	b.WriteString(strings.Repeat("-", rulerWidth) + "\n")
	for _, row := range t.rows {
		line(row)
	}
	b.WriteString(ruler)
	_, err := io.WriteString(w, b.String())
	return err
}
