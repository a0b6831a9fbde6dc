// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/mustang-net/mustang/api"
	"github.com/mustang-net/mustang/service"
)

func svcCommand(e env) *cli.Command {
	return noun("svc", "services: frontends, and the backends behind them",
		svcAdd(e), svcRemove(e), svcList(e), svcInspect(e), svcApply(e),
		svcDrain(e, "drain", "take backends out of new flows while others can take them; flows under way go on", false),
		svcDrain(e, "undrain", "bring drained backends back", true),
	)
}

// aboutRefs tells how commands name a service.
const aboutRefs = "REF is a service's id, name or frontend, such as 10.96.0.100:5201 or tcp:10.96.0.100:5201."

func svcList(e env) verb {
	return verb{
		name: "ls", usage: "list services",
		flags: append(outputFlags(listForms), quietFlag("print ids only")),
		run: func(c *cli.Context) error {
			o, err := outputOf(c, e, listForms)
			if err != nil {
				return err
			}
			return e.host(c, func(ctx context.Context, h api.Host) error {
				views, err := h.Services(ctx)
				if err != nil {
					return err
				}
				sortServices(views)
				return printList(o, listed[api.Service]{
					items: api.ServicesOf(views),
					table: func(wide bool) table { return serviceTable(views, wide) },
					key:   func(s api.Service) string { return strconv.FormatUint(uint64(s.ID), 10) },
				})
			})
		},
	}
}

func sortServices(views []service.View) {
	slices.SortStableFunc(views, func(a, b service.View) int { return cmp.Compare(a.ID, b.ID) })
}

// serviceTable has a row per frontend. The default form lists what gets new flows now; wide lists
// everything and says why the rest gets none.
func serviceTable(views []service.View, wide bool) table {
	t := table{
		title:   fmt.Sprintf("Mustang Service count:%d", len(views)),
		columns: []column{{"id", 8}, {"pro", 8}, {"service", 16}, {"port", 8}, {"backends", 0}},
	}
	if wide {
		t.columns = []column{{"id", 8}, {"pro", 8}, {"service", 16}, {"port", 8}, {"name", 16}, {"source", 8}, {"network", 16}, {"backends", 0}}
	}
	for _, v := range views {
		for _, f := range v.Frontends {
			row := []string{strconv.FormatUint(uint64(v.ID), 10), f.Protocol.String(), f.Addr.String(), portText(f.Port)}
			if wide {
				row = append(row, orDash(v.Name), string(v.Source), orDash(v.Network))
			}
			t.rows = append(t.rows, append(row, backendsText(v, f.Addr, wide)))
		}
	}
	return t
}

// portText writes the port that stands for every port as a star.
func portText(port uint16) string {
	if port == 0 {
		return "*"
	}
	return strconv.Itoa(int(port))
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// backendsText lists the backends of a frontend's family, each followed by a comma.
func backendsText(v service.View, frontend netip.Addr, wide bool) string {
	var b strings.Builder
	for _, backend := range v.Backends {
		if backend.Addr.Addr().Is4() != frontend.Is4() || !wide && !backend.Active {
			continue
		}
		b.WriteString(api.FormatTarget(backend.Addr))
		if wide {
			if backend.Weight > 1 {
				fmt.Fprintf(&b, "@%d", backend.Weight)
			}
			words := []string{string(backend.State)}
			if !backend.Active {
				words = append(words, "inactive")
			}
			fmt.Fprintf(&b, "(%s)", strings.Join(words, " "))
		}
		b.WriteByte(',')
	}
	return b.String()
}

func svcInspect(e env) verb {
	return verb{
		name: "inspect", usage: "show services in full", about: aboutRefs, args: "REF...", min: 1, max: -1,
		flags: outputFlags(inspectForms),
		run: func(c *cli.Context) error {
			o, err := outputOf(c, e, inspectForms)
			if err != nil {
				return err
			}
			return e.host(c, func(ctx context.Context, h api.Host) error {
				views, err := h.Services(ctx)
				if err != nil {
					return err
				}
				sortServices(views)
				var found []service.View
				missing := each(c.Args().Slice(), func(ref string) error {
					before := len(found)
					for _, v := range views {
						if api.Matches(v, ref) {
							found = append(found, v)
						}
					}
					if len(found) == before {
						return fmt.Errorf("inspect service %s: there is none with this id, name or frontend: see mustang svc ls", ref)
					}
					return nil
				})
				if missing != nil {
					return missing
				}
				return printList(o, listed[api.Service]{items: api.ServicesOf(found)})
			})
		},
	}
}

func svcRemove(e env) verb {
	return verb{
		name: "rm", usage: "remove hand-made services", about: aboutRefs, args: "REF...", min: 1, max: -1,
		flags: []cli.Flag{quietFlag("print nothing")},
		run: func(c *cli.Context) error {
			return e.host(c, func(ctx context.Context, h api.Host) error {
				return each(c.Args().Slice(), func(ref string) error {
					if err := h.RemoveService(ctx, ref); err != nil {
						return err
					}
					return e.say(c, "service %s removed\n", ref)
				})
			})
		},
	}
}

func svcDrain(e env, name, usage string, undo bool) verb {
	return verb{
		name: name, usage: usage, args: "REF...", min: 1, max: -1,
		about: "REF is a backend's ADDR or ADDR:PORT, or a container's name or id.",
		flags: []cli.Flag{quietFlag("print nothing")},
		run: func(c *cli.Context) error {
			return e.host(c, func(ctx context.Context, h api.Host) error {
				return each(c.Args().Slice(), func(ref string) error {
					if err := h.Drain(ctx, ref, undo); err != nil {
						return err
					}
					return e.say(c, "backend %s %sed\n", ref, name)
				})
			})
		},
	}
}

// say prints what a verb did, unless --quiet.
func (e env) say(c *cli.Context, format string, args ...any) error {
	if c.Bool("quiet") {
		return nil
	}
	_, err := fmt.Fprintf(e.stdout, format, args...)
	return err
}
