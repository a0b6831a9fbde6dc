// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	_ "gonum.org/v1/plot/vg/vgimg" // .png, which a program made with the tag minimal has not else
	_ "gonum.org/v1/plot/vg/vgsvg" // .svg
)

// chartEndings are the formats that a chart can be drawn in.
var chartEndings = []string{".svg", ".png"}

// checkChart refuses a file that could not be written in the end.
func checkChart(file string) error {
	if file == "" {
		return nil
	}
	if !slices.Contains(chartEndings, filepath.Ext(file)) {
		return fmt.Errorf("--chart %s: its name must end in %s", file, strings.Join(chartEndings, " or "))
	}
	if info, err := os.Stat(file); err == nil && info.IsDir() {
		return fmt.Errorf("--chart %s: it is a directory", file)
	}
	if err := unix.Access(filepath.Dir(file), unix.W_OK); err != nil {
		return fmt.Errorf("--chart %s: the directory %s cannot be written to: %w", file, filepath.Dir(file), err)
	}
	return nil
}

// Sizes of the chart.
const (
	chartHeight = 12 * vg.Centimeter
	perVariant  = 2.6 * vg.Centimeter
	barWidth    = 0.8 * vg.Centimeter
)

// WriteChart draws the throughput of every mode, directly and by the VIP, with the intervals.
func (r Result) WriteChart(file string) error {
	p := plot.New()
	p.Title.Text = "TCP stream between two sandboxes (median, 95 % interval)"
	p.Y.Label.Text = units[streamRate]
	p.Y.Min = 0
	p.Legend.Top = true
	variants := r.variants()
	var names []string
	for _, v := range variants {
		names = append(names, v.String())
	}
	p.NominalX(names...)
	for i, path := range []string{pathDirect, pathVIP} {
		if err := r.drawBars(p, variants, path, i); err != nil {
			return fmt.Errorf("draw the chart: %w", err)
		}
	}
	p.Y.Max *= 1.15 // room for the legend
	format := strings.TrimPrefix(filepath.Ext(file), ".")
	picture, err := p.WriterTo(perVariant*vg.Length(len(variants)+1), chartHeight, format)
	if err != nil {
		return fmt.Errorf("draw the chart: %w", err)
	}
	var out bytes.Buffer
	if _, err := picture.WriteTo(&out); err != nil {
		return fmt.Errorf("draw the chart: %w", err)
	}
	if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write the chart: %w", err)
	}
	return nil
}

// whiskers are the intervals as gonum wants them: points, and how far below and above each.
type whiskers struct {
	plotter.XYs
	plotter.YErrors
}

// shifted draws error bars as far aside as their bars.
type shifted struct {
	*plotter.YErrorBars
	by vg.Length
}

// Plot draws them.
func (s shifted) Plot(c draw.Canvas, p *plot.Plot) {
	c.Min.X += s.by
	c.Max.X += s.by
	s.YErrorBars.Plot(c, p)
}

// drawBars draws the bars of one path, beside those of the other.
func (r Result) drawBars(p *plot.Plot, variants []variant, path string, number int) error {
	values := make(plotter.Values, len(variants))
	var w whiskers
	for i, v := range variants {
		row, ok := r.find(v, path, streamRate)
		if !ok {
			continue
		}
		values[i] = row.Value
		w.XYs = append(w.XYs, plotter.XY{X: float64(i), Y: row.Value})
		w.YErrors = append(w.YErrors, struct{ Low, High float64 }{row.Value - row.Low, row.High - row.Value})
	}
	if len(w.XYs) == 0 {
		return nil
	}
	bars, err := plotter.NewBarChart(values, barWidth)
	if err != nil {
		return err
	}
	bars.Color = plotutil.Color(number)
	bars.LineStyle.Width = 0
	bars.Offset = barWidth * (vg.Length(number) - 0.5)
	lines, err := plotter.NewYErrorBars(w)
	if err != nil {
		return err
	}
	p.Add(bars, shifted{lines, bars.Offset})
	p.Legend.Add(path, bars)
	return nil
}
