{{- /* Each of these alters the object that it is given, and writes nothing. */}}

{{- define "xgen-ray.image" -}}
{{ .root.Values.image.repository }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}-{{ .kind }}
{{- end }}

{{- define "xgen-ray.claim" }}
{{- $root := index . 0 }}{{ $claim := index . 1 }}
{{- $wanted := get $root.Values.storage (trimPrefix "xgen-ray-" $claim.metadata.name) }}
{{- $_ := set $claim.spec.resources.requests "storage" $wanted.size }}
{{- with $wanted.storageClass }}{{ $_ := set $claim.spec "storageClassName" . }}{{ end }}
{{- end }}

{{- define "xgen-ray.service" }}
{{- $root := index . 0 }}{{ $service := index . 1 }}
{{- $cluster := $service.spec.rayClusterConfig }}
{{- $_ := set $cluster.gcsFaultToleranceOptions.redisPassword.valueFrom.secretKeyRef "name" $root.Values.secrets.redis }}
{{- include "xgen-ray.head" (list $root $cluster.headGroupSpec.template.spec) }}
{{- $config := fromYaml $service.spec.serveConfigV2 }}
{{- $control := (index $config.applications 0).args }}
{{- $_ := set $control "base_url" (printf "http://xgen-ray.%s:8000" $root.Release.Namespace) }}
{{- $_ := set $control "models" $root.Values.models }}
{{- with $root.Values.profiles }}{{ $_ := set $control "profiles" . }}{{ end }}
{{- with $root.Values.nodeCosts }}{{ $_ := set $control "node_costs" . }}{{ end }}
{{- $_ := set (index $config.applications 1).args "replicas" $root.Values.routers }}
{{- $kinds := dict }}
{{- range $cluster.workerGroupSpecs }}{{ $_ := set $kinds .groupName . }}{{ end }}
{{- $groups := list }}{{ $types := dict }}
{{- range $name, $wanted := $root.Values.groups }}
{{- if $wanted }}
{{- $like := get $kinds $wanted.image | required (printf "groups.%s.image must be nvidia, amd or cpu" $name) }}
{{- $group := deepCopy $like }}
{{- include "xgen-ray.group" (list $root $group $name $wanted) }}
{{- $groups = append $groups $group }}
{{- $resources := dict }}
{{- range $resource, $count := $group.resources }}
{{- if ne $count "0" }}{{ $_ := set $resources $resource (int $count) }}{{ end }}
{{- end }}
{{- $_ := set $types $name (dict "max_workers" $group.maxReplicas "resources" $resources "labels" $group.labels) }}
{{- end }}
{{- end }}
{{- $_ := set $control "node_types" $types }}
{{- $_ := set $cluster "workerGroupSpecs" $groups }}
{{- $_ := set $service.spec "serveConfigV2" (toYaml $config) }}
{{- end }}

{{- define "xgen-ray.head" }}
{{- $root := index . 0 }}{{ $pod := index . 1 }}
{{- range concat $pod.initContainers $pod.containers }}
{{- $_ := set . "image" (include "xgen-ray.image" (dict "root" $root "kind" "cpu")) }}
{{- end }}
{{- range $pod.volumes }}
{{- if .secret }}{{ $_ := set .secret "secretName" $root.Values.secrets.apiKeys }}{{ end }}
{{- end }}
{{- end }}

{{- define "xgen-ray.group" }}
{{- $root := index . 0 }}{{ $group := index . 1 }}{{ $name := index . 2 }}{{ $wanted := index . 3 }}
{{- $_ := set $group "groupName" $name }}
{{- range list "replicas" "minReplicas" "maxReplicas" }}{{ $_ := set $group . (get $wanted .) }}{{ end }}
{{- $resources := dict "CPU" (toString $wanted.cpu) $wanted.device (toString ($wanted.gpus | default 1)) }}
{{- if $wanted.gpus }}{{ $_ := set $resources "GPU" "0" }}{{ end }}
{{- $_ := set $group "resources" $resources }}
{{- $labels := dict "xgen-ray/ram" (printf "%vg" $wanted.memory) }}
{{- $_ := set $labels "xgen-ray/gpu-type" (ternary $wanted.device "cpu" (not (empty $wanted.gpus))) }}
{{- if $wanted.gpus }}
{{- $_ := set $labels "xgen-ray/gpu-memory" $wanted.gpuMemory }}
{{- $_ := set $labels (printf "xgen-ray/gpu-%s" $wanted.device) "true" }}
{{- end }}
{{- range $wanted.backends }}{{ $_ := set $labels (printf "xgen-ray/backend-%s" .) "true" }}{{ end }}
{{- $_ := set $group "labels" $labels }}
{{- $pod := $group.template.spec }}
{{- with $wanted.nodeSelector }}{{ $_ := set $pod "nodeSelector" . }}{{ end }}
{{- with $wanted.tolerations }}{{ $_ := set $pod "tolerations" (concat ($pod.tolerations | default list) .) }}{{ end }}
{{- with $wanted.supplementalGroups }}{{ $_ := set $pod.securityContext "supplementalGroups" . }}{{ end }}
{{- $container := index $pod.containers 0 }}
{{- $_ := set $container "image" (include "xgen-ray.image" (dict "root" $root "kind" $wanted.image)) }}
{{- range $bounds := list $container.resources.requests $container.resources.limits }}
{{- if hasKey $bounds "cpu" }}{{ $_ := set $bounds "cpu" (toString $wanted.cpu) }}{{ end }}
{{- $_ := set $bounds "memory" (printf "%vGi" $wanted.memory) }}
{{- range $resource, $_ := $bounds }}
{{- if hasSuffix "/gpu" $resource }}{{ $_ := set $bounds $resource $wanted.gpus }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
