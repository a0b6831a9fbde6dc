// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/mustang-net/mustang/api"
)

func networkCommand(e env) *cli.Command {
	return noun("network", "networks and their blocks of virtual IPs", networkCreate(e), networkRemove(e), networkList(e), networkInspect(e))
}

func networkList(e env) verb {
	return verb{
		name: "ls", usage: "list networks",
		flags: append(outputFlags(listForms), quietFlag("print ids only")),
		run: func(c *cli.Context) error {
			o, err := outputOf(c, e, listForms)
			if err != nil {
				return err
			}
			return e.host(c, func(ctx context.Context, h api.Host) error {
				list, err := h.Networks(ctx)
				if err != nil {
					return err
				}
				sortNetworks(list)
				return printList(o, listed[api.Network]{
					items: list,
					table: func(wide bool) table { return networkTable(list, wide) },
					key:   func(n api.Network) string { return n.ID },
				})
			})
		},
	}
}

func sortNetworks(list []api.Network) {
	slices.SortStableFunc(list, func(a, b api.Network) int { return cmp.Compare(a.Number, b.Number) })
}

func networkTable(list []api.Network, wide bool) table {
	t := table{
		title:   fmt.Sprintf("Mustang Network count:%d", len(list)),
		columns: []column{{"Id", 8}, {"Name", 16}, {"Mode", 8}, {"Endpoints", 16}, {"Services", 16}, {"Subnets", 0}},
	}
	if wide {
		t.columns[len(t.columns)-1].width = 16
		t.columns = append(t.columns, column{"VIPs", 16}, column{"Internal", 16}, column{"Options", 16}, column{"NetworkID", 0})
	}
	for _, n := range list {
		row := []string{strconv.FormatUint(uint64(n.Number), 10), orDash(n.Name), n.Mode,
			strconv.Itoa(n.Endpoints), strconv.Itoa(n.Services), orDash(strings.Join(n.Subnets, ","))}
		if wide {
			row = append(row, orDash(strings.Join(n.VIPs, ",")), strconv.FormatBool(n.Internal), orDash(optionsText(n.Options)), n.ID)
		}
		t.rows = append(t.rows, row)
	}
	return t
}

// optionsText writes options as k=v, in the order of their keys.
func optionsText(options map[string]string) string {
	var pairs []string
	for key, value := range options {
		pairs = append(pairs, key+"="+value)
	}
	slices.Sort(pairs)
	return strings.Join(pairs, ",")
}

func networkInspect(e env) verb {
	return verb{
		name: "inspect", usage: "show networks in full", args: "NAME|ID...", min: 1, max: -1,
		about: "ID may be shortened as long as it means one network.",
		flags: outputFlags(inspectForms),
		run: func(c *cli.Context) error {
			o, err := outputOf(c, e, inspectForms)
			if err != nil {
				return err
			}
			return e.host(c, func(ctx context.Context, h api.Host) error {
				list, err := h.Networks(ctx)
				if err != nil {
					return err
				}
				sortNetworks(list)
				var found []api.Network
				missing := each(c.Args().Slice(), func(ref string) error {
					n, err := findNetwork(list, ref)
					if err != nil {
						return fmt.Errorf("inspect %w", err)
					}
					found = append(found, n)
					return nil
				})
				if missing != nil {
					return missing
				}
				return printList(o, listed[api.Network]{items: found})
			})
		},
	}
}

// findNetwork looks for a whole name or id first, then for the beginning of an id.
func findNetwork(list []api.Network, ref string) (api.Network, error) {
	var hits []api.Network
	for _, n := range list {
		if ref == n.Name || ref == n.ID {
			return n, nil
		}
		if strings.HasPrefix(n.ID, ref) {
			hits = append(hits, n)
		}
	}
	switch len(hits) {
	case 0:
		return api.Network{}, fmt.Errorf("network %s: there is none with this name or id: see mustang network ls", ref)
	case 1:
		return hits[0], nil
	}
	return api.Network{}, fmt.Errorf("network %s: %d ids begin so: give more of it", ref, len(hits))
}
