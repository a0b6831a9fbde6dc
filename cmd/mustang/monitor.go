// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/api"
	"github.com/mustang-net/mustang/monitor"
)

func monitorCommand(e env) *cli.Command {
	forms := []string{"table", "json"}
	return verb{
		name: "monitor", usage: "show what the datapath does, as it happens",
		about: "Drops with their reason, and flows as they begin and end: translated when their sockets connect or packet by\n" +
			"packet, those between endpoints, to published ports, and out of the host. -o json prints a JSON object per line.\n" +
			"Flags given several times are alternatives. It ends on Ctrl-C, and when nobody reads its output any more.",
		flags: append(outputFlags(forms),
			&cli.StringSliceFlag{Name: "network", Usage: "of endpoints of the network `NAME`"},
			&cli.StringSliceFlag{Name: "service", Usage: "of the service `NAME|VIP`"},
			&cli.StringSliceFlag{Name: "container", Usage: "from, to or by the container `NAME`"},
			&cli.StringSliceFlag{Name: "verdict", Usage: "with the `VERDICT`: forwarded, refused, dropped, or a reason such as no-backend"}),
		run: func(c *cli.Context) error {
			o, err := outputOf(c, e, forms)
			if err != nil {
				return err
			}
			filter := monitor.Filter{
				Networks: c.StringSlice("network"), Services: c.StringSlice("service"),
				Containers: c.StringSlice("container"), Verdicts: c.StringSlice("verdict"),
			}
			for _, v := range filter.Verdicts {
				if !slices.Contains(monitor.Verdicts(), v) {
					return usagef(c, "--verdict %q: choose among %s", v, strings.Join(monitor.Verdicts(), ", "))
				}
			}
			ctx, cancel := context.WithCancel(c.Context)
			defer cancel()
			c.Context = ctx
			go func() {
				if hangUp(ctx, e.stdout) {
					cancel()
				}
			}()
			return e.host(c, func(ctx context.Context, h api.Host) error {
				return h.Monitor(ctx, filter, func(event monitor.Event) error { return printEvent(o, e.stderr, event) })
			})
		},
	}.command()
}

// printEvent prints one line. What is not an event of the datapath's goes to stderr, but for JSON, whose readers
// look at it.
func printEvent(o output, stderr io.Writer, e monitor.Event) error {
	switch {
	case e.Kind == monitor.EventBegun:
		if o.form == "table" && o.template == nil {
			_, err := fmt.Fprintf(o.w, eventLine, "TIME", "EVENT", "FLOW", "VERDICT", "DETAIL")
			return err
		}
		return nil
	case o.template != nil:
		return o.execute(e)
	case o.form == "json":
		lines := json.NewEncoder(o.w)
		lines.SetEscapeHTML(false)
		return lines.Encode(e)
	case e.Kind == monitor.EventLost:
		_, err := fmt.Fprintf(stderr, "mustang: %d events are missing here\n", e.Lost)
		return err
	}
	line := fmt.Sprintf(eventLine, e.Time.Format("15:04:05.000"), e.Kind, e.Flow(), e.Outcome(), e.Detail())
	_, err := io.WriteString(o.w, strings.TrimRight(line, " \n")+"\n")
	return err
}

const eventLine = "%-12s  %-6s  %-40s  %-20s  %s\n"

// hangUp waits until nobody reads a pipe's other end, and reports that; false once ctx ends. What is no file never is.
func hangUp(ctx context.Context, w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	const every = 250 // ms
	fds := []unix.PollFd{{Fd: int32(f.Fd())}}
	for ctx.Err() == nil {
		if n, err := unix.Poll(fds, every); err == nil && n > 0 && fds[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0 {
			return true
		}
	}
	return false
}
