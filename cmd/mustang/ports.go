// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/mustang-net/mustang/api"
)

func portsCommand(e env) *cli.Command {
	return verb{
		name: "ports", usage: "list published ports",
		about: "Published ports are let in before the host's firewall sees them: restrict who reaches them with the option\n" +
			"publish_sources, or publish on 127.0.0.1. --audit says from where each is reached. A network with\n" +
			"publish=gwbridge leaves its ports to Docker: they are listed by `docker ps`.",
		flags: append(outputFlags(listForms), quietFlag("print addresses and ports only"),
			&cli.StringFlag{Name: "network", Usage: "list those of the network `NAME|ID` only"},
			&cli.BoolFlag{Name: "audit", Usage: "say from where each port is reached", DisableDefaultText: true}),
		run: func(c *cli.Context) error {
			o, err := outputOf(c, e, listForms)
			if err != nil {
				return err
			}
			return e.host(c, func(ctx context.Context, h api.Host) error {
				list, err := portsOf(ctx, h, c.String("network"))
				if err != nil {
					return err
				}
				return printList(o, listed[api.Port]{
					items: list,
					table: func(wide bool) table {
						if c.Bool("audit") {
							return auditTable(list, wide)
						}
						return portTable(list, wide)
					},
					key: portKey,
				})
			})
		},
	}.command()
}

// portsOf lists the ports of a network, or of all.
func portsOf(ctx context.Context, h api.Host, network string) ([]api.Port, error) {
	var id string
	if network != "" {
		networks, err := h.Networks(ctx)
		if err != nil {
			return nil, err
		}
		n, err := findNetwork(networks, network)
		if err != nil {
			return nil, err
		}
		id = n.ID
	}
	list, err := h.Ports(ctx)
	if id != "" {
		list = slices.DeleteFunc(list, func(p api.Port) bool { return p.NetworkID != id })
	}
	return list, err
}

// portKey is a port as messages name it: 0.0.0.0:8080/tcp, or 0.0.0.0:8080-8089/tcp.
func portKey(p api.Port) string { return portHost(p) + "/" + p.Protocol }

func portHost(p api.Port) string { return p.Host.String() + rangeEnd(p.Host.Port(), p.Count) }

func containerPort(p api.Port) string { return fmt.Sprint(p.Port) + rangeEnd(p.Port, p.Count) }

// rangeEnd is "-LAST" where there are several.
func rangeEnd(first, count uint16) string {
	if count < 2 {
		return ""
	}
	return fmt.Sprintf("-%d", first+count-1)
}

// portOwner is the container's name, or the endpoint's short id while nobody has told of it.
func portOwner(p api.Port) string {
	const short = 12
	return cmp.Or(p.Container, p.Endpoint[:min(short, len(p.Endpoint))])
}

func portTable(list []api.Port, wide bool) table {
	t := table{
		title:   fmt.Sprintf("Mustang Port count:%d", len(list)),
		columns: []column{{"pro", 8}, {"host", 24}, {"container", 16}, {"port", 8}, {"addresses", 0}},
	}
	if wide {
		t.columns[len(t.columns)-1].width = 16
		t.columns = append(t.columns, column{"state", 16}, column{"network", 16}, column{"sources", 16}, column{"endpoint", 0})
	}
	for _, p := range list {
		row := []string{strings.ToUpper(p.Protocol), portHost(p), portOwner(p), containerPort(p), orDash(join(texts(p.Addresses), ","))}
		if wide {
			row = append(row, portState(p), cmp.Or(p.NetworkName, p.NetworkID), orDash(join(texts(p.Sources), ",")), p.Endpoint)
		}
		t.rows = append(t.rows, row)
	}
	return t
}

// portState is how the container is, and whether that keeps new connections from it.
func portState(p api.Port) string {
	switch {
	case p.State == "" || p.Active:
		return orDash(string(p.State))
	}
	return string(p.State) + " inactive"
}

// auditTable is for whoever asks what is open.
func auditTable(list []api.Port, wide bool) table {
	t := table{
		title: fmt.Sprintf("Mustang Port count:%d\n"+
			"Let in before the host's firewall, whose rules do not apply to them.\n"+
			"The host reaches every one, its containers all but those from \"host\".", len(list)),
		columns: []column{{"pro", 8}, {"host", 24}, {"from", 16}, {"uplinks", 24}, {"container", 16}, {"network", 0}},
	}
	if wide {
		t.columns[len(t.columns)-1].width = 16
		t.columns = append(t.columns, column{"port", 8}, column{"addresses", 16}, column{"endpoint", 0})
	}
	for _, p := range list {
		row := []string{strings.ToUpper(p.Protocol), portHost(p), portFrom(p), orDash(join(p.Uplinks, ",")), portOwner(p), cmp.Or(p.NetworkName, p.NetworkID)}
		if wide {
			row = append(row, containerPort(p), orDash(join(texts(p.Addresses), ",")), p.Endpoint)
		}
		t.rows = append(t.rows, row)
	}
	return t
}

// portFrom says who reaches a port.
func portFrom(p api.Port) string {
	switch {
	case p.Reach == api.ReachHost:
		return "host"
	case len(p.Uplinks) == 0:
		return "containers" // nothing leads in from outside
	case p.Reach == api.ReachSources:
		return join(texts(p.Sources), ",")
	}
	return string(p.Reach)
}
