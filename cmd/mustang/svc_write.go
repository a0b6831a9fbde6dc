// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/urfave/cli/v2"
	"sigs.k8s.io/yaml"

	"github.com/mustang-net/mustang/api"
	"github.com/mustang-net/mustang/service"
)

func svcAdd(e env) verb {
	return verb{
		name: "add", usage: "add a service by hand",
		about: "Without a port the service has every port, one to one. IPv6 addresses stand in brackets:\n" +
			"  mustang svc add --service=10.96.0.100:5201 --backend=192.168.10.10:5201\n" +
			"  mustang svc add --service=[fd6d:7374:10::1]:80 --backend=[fd00::2]:8080@3,[fd00::3]:8080@1 --protocol=tcp",
		flags: []cli.Flag{
			&cli.StringFlag{Name: "service", Usage: "the frontend: `ADDR:PORT`, or ADDR for every port"},
			&cli.StringSliceFlag{Name: "backend", Usage: "a backend: `ADDR:PORT[@WEIGHT]`, or ADDR to keep the port; weights are 1 to 100; repeat it or separate by commas"},
			&cli.StringFlag{Name: "protocol", Value: "any", Usage: "`PROTOCOL`: tcp, udp or any"},
			&cli.StringFlag{Name: "name", Usage: "a `NAME` to refer to the service by"},
			&cli.DurationFlag{Name: "affinity", DefaultText: "none", Usage: "keep each client on its backend for `DURATION`, such as 60s"},
			quietFlag("print the id only"),
		},
		run: func(c *cli.Context) error {
			spec, err := specFromFlags(c)
			if err != nil {
				return err
			}
			return e.host(c, func(ctx context.Context, h api.Host) error {
				v, err := h.AddService(ctx, spec)
				if err != nil {
					return err
				}
				if c.Bool("quiet") {
					_, err = fmt.Fprintln(e.stdout, v.ID)
					return err
				}
				return e.say(c, "service %d added: %s\n", v.ID, api.FormatFrontend(spec.Frontend))
			})
		},
	}
}

// specFromFlags reads the flags of svc add; every error is one of usage.
func specFromFlags(c *cli.Context) (service.Spec, error) {
	s := api.Service{Name: c.String("name")}
	if !c.IsSet("service") {
		return service.Spec{}, usagef(c, "--service is missing: name the frontend, such as --service=10.96.0.100:5201")
	}
	if len(c.StringSlice("backend")) == 0 {
		return service.Spec{}, usagef(c, "--backend is missing: name a backend, such as --backend=192.168.10.10:5201")
	}
	frontend, err := api.ParseFrontend(c.String("service"), c.String("protocol"))
	if err != nil {
		return service.Spec{}, usagef(c, "--service: %w", err)
	}
	s.Frontends = []api.Frontend{frontend}
	for _, text := range c.StringSlice("backend") {
		backend, err := api.ParseBackend(text)
		if err != nil {
			return service.Spec{}, usagef(c, "--backend: %w", err)
		}
		s.Backends = append(s.Backends, backend)
	}
	if s.Affinity, err = affinity(c.Duration("affinity")); err != nil {
		return service.Spec{}, usagef(c, "--affinity: %w", err)
	}
	specs, err := s.Specs()
	if err != nil {
		return service.Spec{}, usagef(c, "%w", err)
	}
	return specs[0], nil
}

// affinity is d in seconds.
func affinity(d time.Duration) (uint32, error) {
	if d < 0 || d%time.Second != 0 || d/time.Second > math.MaxUint32 {
		return 0, fmt.Errorf("%s: choose whole seconds, or 0 for none", d)
	}
	return uint32(d / time.Second), nil
}

func svcApply(e env) verb {
	return verb{
		name: "apply", usage: "make the hand-made services equal to those in a file",
		about: "The file is JSON or YAML as printed by mustang svc ls -o json. Services of other sources\n" +
			"than svc are passed over. Hand-made services that the file does not name are removed.",
		flags: []cli.Flag{
			&cli.StringFlag{Name: "file", Aliases: []string{"f"}, Usage: "read `FILE`, or standard input if it is -"},
			quietFlag("print nothing"),
		},
		run: func(c *cli.Context) error {
			path := c.String("file")
			if path == "" {
				return usagef(c, "--file is missing: name a file, or - for standard input")
			}
			specs, others, err := e.readSpecs(path)
			if err != nil {
				return fmt.Errorf("apply services from %s: %w", path, err)
			}
			return e.host(c, func(ctx context.Context, h api.Host) error {
				done, err := h.ApplyServices(ctx, specs)
				if err != nil {
					return err
				}
				if err := e.say(c, "services: %d added, %d changed, %d removed, %d unchanged\n",
					done.Added, done.Changed, done.Removed, done.Unchanged); err != nil || others == 0 {
					return err
				}
				return e.say(c, "%d of other sources passed over\n", others)
			})
		},
	}
}

// readSpecs returns the hand-made services of a file and how many others it has.
func (e env) readSpecs(path string) (specs []service.Spec, others int, err error) {
	var text []byte
	if path == "-" {
		text, err = io.ReadAll(e.stdin)
	} else {
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, 0, err
	}
	list, err := decodeServices(text)
	if err != nil {
		return nil, 0, err
	}
	for i, s := range list {
		if s.Source != "" && s.Source != service.SourceHand {
			others++
			continue
		}
		expanded, err := s.Specs()
		if err != nil {
			return nil, 0, fmt.Errorf("service %d of the list: %w", i+1, err)
		}
		specs = append(specs, expanded...)
	}
	return specs, others, nil
}

// decodeServices reads a list in JSON or YAML. An empty file is an error and not an empty list: it is
// more likely what a failed command left in a pipe than the wish to remove every service.
func decodeServices(text []byte) ([]api.Service, error) {
	text = bytes.TrimSpace(text)
	if len(text) == 0 {
		return nil, errors.New("it is empty: to remove every hand-made service, apply []")
	}
	if text[0] != '[' && text[0] != '{' {
		var err error
		if text, err = yaml.YAMLToJSONStrict(text); err != nil {
			return nil, err
		}
	}
	if text[0] != '[' {
		return nil, errors.New("it is no list of services, as mustang svc ls -o json prints it")
	}
	var list []api.Service
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&list); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more follows the list of services")
	}
	return list, nil
}
