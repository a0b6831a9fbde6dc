// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// WriteTable prints what was measured for people: the founding article's closing table with more columns, the ratios,
// and a recommendation.
func (r Result) WriteTable(out io.Writer) error {
	var b strings.Builder
	for _, note := range r.Notes {
		fmt.Fprintln(&b, note)
	}
	if len(r.Notes) > 0 {
		fmt.Fprintln(&b)
	}
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "MODE\tDIRECT Gbit/s\tVIP Gbit/s\tVIP/DIRECT\tTCP RR p50/p99 us\tUDP RR p50/p99 us\tCONNECTIONS/s\tCPU s/GB\t")
	for _, line := range r.lines() {
		fmt.Fprintln(t, strings.Join(line, "\t")+"\t")
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(&b, "Medians. From TCP RR on, those of the path by the VIP where there is one.")
	if text := r.ratioTable(); text != "" {
		fmt.Fprint(&b, "\n", text)
	}
	if text := r.scaleTable(); text != "" {
		fmt.Fprint(&b, "\n", text)
	}
	if text := r.Recommendation(); text != "" {
		fmt.Fprint(&b, "\n", text, "\n")
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// variant is a mode as it is listed.
type variant struct {
	mode string
	ebpf bool
}

func (v variant) String() string {
	if v.ebpf {
		return v.mode + "+eBPF"
	}
	return v.mode
}

// variants lists them in the order of the rows.
func (r Result) variants() []variant {
	var out []variant
	seen := map[variant]bool{}
	for _, row := range r.Rows {
		v := variant{row.Mode, row.EBPF}
		if !seen[v] {
			seen[v] = true
			out = append(out, v)
		}
	}
	return out
}

// find is the row of a metric that was measured without preloaded services.
func (r Result) find(v variant, path, metric string) (Row, bool) {
	for _, row := range r.Rows {
		if row.Mode == v.mode && row.EBPF == v.ebpf && row.Path == path && row.Metric == metric && row.Services == 0 {
			return row, true
		}
	}
	return Row{}, false
}

func (r Result) lines() [][]string {
	var out [][]string
	for _, v := range r.variants() {
		path := pathDirect
		if _, ok := r.find(v, pathVIP, streamRate); ok {
			path = pathVIP
		}
		cell := func(path string, metrics ...string) string {
			var cells []string
			for _, metric := range metrics {
				row, ok := r.find(v, path, metric)
				if !ok {
					return "-"
				}
				cells = append(cells, digits(row.Value))
			}
			return strings.Join(cells, "/")
		}
		out = append(out, []string{
			v.String(), cell(pathDirect, streamRate), cell(pathVIP, streamRate), cell(pathVIP, streamRate+ratioSuffix),
			cell(path, tcpP50, tcpP99), cell(path, udpP50, udpP99), cell(path, connectRate), cell(path, cpuPerGB),
		})
	}
	return out
}

func (r Result) ratioTable() string {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "RATIO\tOF\tAGAINST\tVALUE\t95 % INTERVAL\tRUNS")
	empty := true
	for _, row := range r.Rows {
		if metric, ok := strings.CutSuffix(row.Metric, ratioSuffix); ok && row.Services == 0 {
			empty = false
			fmt.Fprintf(t, "%s\t%s %s\t%s\t%.3f\t%s\t%d\n",
				metric, variant{row.Mode, row.EBPF}, row.Path, row.Against, row.Value, row.interval("%.3f"), row.Runs)
		}
	}
	if err := t.Flush(); err != nil || empty {
		return ""
	}
	return b.String()
}

// scaleTable has a line for each way to make a VIP, with one service and with many.
func (r Result) scaleTable() string {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	empty := true
	for _, many := range r.Rows {
		one, ok := r.scaled(many, connectRate, 1)
		ratio, okToo := r.scaled(many, connectRate+ratioSuffix, many.Services)
		if !ok || !okToo || many.Services <= 1 || many.Metric != connectRate {
			continue
		}
		if empty {
			fmt.Fprintf(t, "CONNECTIONS/s\tVIP BY\t1 SERVICE\t%d SERVICES\tRATIO\t95 %% INTERVAL\n", many.Services)
		}
		empty = false
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%.3f\t%s\n", variant{many.Mode, many.EBPF}, many.Via,
			digits(one.Value), digits(many.Value), ratio.Value, ratio.interval("%.3f"))
	}
	if err := t.Flush(); err != nil || empty {
		return ""
	}
	return b.String()
}

// scaled is the row of the same way with another metric, or beside another number of services.
func (r Result) scaled(like Row, metric string, services int) (Row, bool) {
	for _, row := range r.Rows {
		if row.Mode == like.Mode && row.EBPF == like.EBPF && row.Via == like.Via && row.Metric == metric && row.Services == services {
			return row, true
		}
	}
	return Row{}, false
}

func (r Row) interval(format string) string {
	return fmt.Sprintf(format, r.Low) + " … " + fmt.Sprintf(format, r.High)
}

// digits keeps those that can mean something.
func digits(v float64) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
