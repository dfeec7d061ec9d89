/* Stand-in for libnvidia-ml.so.1, enough for the real pynvml to take an inventory and live figures.
 *
 * STANDIN_NVML_CARDS   cards, see cards.h. Fields: name, memory_mb, used_mb, reserved_mb, cc (8.9), bus, uuid,
 *                      mig: "off" or slices "1g.10gb:9856+2g.20gb:19968" (profile:MB), "none" for MIG mode
 *                      without slices; mig_names=plain leaves the profile out of the slices' names.
 *                      procs, graphics: what runs there, "4711:1024+4712:-" (process id:MB, "-": not known)
 *                      Queries for rc_QUERY: handle, name, uuid, memory, memory_v2, cc, pci, usage, processes.
 * STANDIN_NVML_INIT    status of nvmlInit (9: driver not loaded)
 * STANDIN_NVML_FAULT   hang, crash or print, in init or memory, see cards.h
 */
#include "cards.h"

typedef int nvmlReturn_t;
enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, DRIVER_NOT_LOADED = 9 };

#define MAX_SLICES 7
#define NO_SLICE (-1)

struct slice {
    char profile[MAX_TEXT];
    uint64_t memory_mb;
};

static struct machine machine;

/* A handle is the card's number from 1, with the slice's place from 1 in the next byte for a slice. */
static void *handle_of(unsigned card, int slice)
{
    return (void *)(uintptr_t)((card + 1) | (unsigned)(slice + 1) << 8);
}

static struct card *card_of(void *handle)
{
    uintptr_t number = ((uintptr_t)handle & 0xff) - 1;
    return number < machine.card_count ? &machine.cards[number] : NULL;
}

static int slice_of(void *handle)
{
    return (int)((uintptr_t)handle >> 8) - 1;
}

static unsigned index_of(const struct card *card)
{
    return (unsigned)(card - machine.cards);
}

/* Slices sit at places 0, 2, 4...: the real numbering has gaps too. */
static int read_slice(const struct card *card, int place, struct slice *slice)
{
    char text[MAX_TEXT], *rest = NULL;
    snprintf(text, sizeof text, "%s", text_of(card, "mig", "off"));
    int current = 0;
    for (char *part = strtok_r(text, "+", &rest); part; part = strtok_r(NULL, "+", &rest), current += 2) {
        unsigned long long megabytes = 0;
        if (current == place && sscanf(part, "%127[^:]:%llu", slice->profile, &megabytes) == 2) {
            slice->memory_mb = megabytes;
            return 1;
        }
    }
    return 0;
}

#define CARD_OR_RETURN(query)                        \
    struct card *card = card_of(handle);             \
    if (!card)                                       \
        return INVALID_ARGUMENT;                     \
    if (told_to_fail(card, query))                   \
        return told_to_fail(card, query)

nvmlReturn_t nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    misbehave("STANDIN_NVML_FAULT", "init");
    read_machine(&machine, "STANDIN_NVML_CARDS");
    const char *status = getenv("STANDIN_NVML_INIT");
    return status ? atoi(status) : SUCCESS;
}

nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

nvmlReturn_t nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(nvmlReturn_t status)
{
    return status == DRIVER_NOT_LOADED ? "Driver Not Loaded" : "Stand-in error";
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *text, unsigned size)
{
    snprintf(text, size, "570.86.10");
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count)
{
    *count = machine.card_count;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out)
{
    void *handle = handle_of(index, NO_SLICE);
    CARD_OR_RETURN("handle");
    *out = handle;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetName(void *handle, char *text, unsigned size)
{
    CARD_OR_RETURN("name");
    const char *name = text_of(card, "name", "NVIDIA Stand-in");
    struct slice slice;
    if (read_slice(card, slice_of(handle), &slice) && strcmp(text_of(card, "mig_names", ""), "plain"))
        snprintf(text, size, "%s MIG %s", name, slice.profile);
    else
        snprintf(text, size, "%s", name);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUUID(void *handle, char *text, unsigned size)
{
    CARD_OR_RETURN("uuid");
    char otherwise[MAX_TEXT];
    if (slice_of(handle) != NO_SLICE) {
        snprintf(text, size, "MIG-%08x-%04x-4000-8000-000000000000", index_of(card), slice_of(handle));
        return SUCCESS;
    }
    snprintf(otherwise, sizeof otherwise, "GPU-%08x-0000-4000-8000-000000000000", index_of(card));
    snprintf(text, size, "%s", text_of(card, "uuid", otherwise));
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor)
{
    CARD_OR_RETURN("cc");
    if (slice_of(handle) != NO_SLICE)
        return NOT_SUPPORTED;
    return sscanf(text_of(card, "cc", "8.9"), "%d.%d", major, minor) == 2 ? SUCCESS : NOT_SUPPORTED;
}

struct pci_info {
    char legacy_bus_id[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
};

nvmlReturn_t nvmlDeviceGetPciInfo_v3(void *handle, struct pci_info *info)
{
    CARD_OR_RETURN("pci");
    char otherwise[MAX_TEXT];
    memset(info, 0, sizeof *info);
    snprintf(otherwise, sizeof otherwise, "00000000:%02X:00.0", index_of(card) + 1);
    snprintf(info->bus_id, sizeof info->bus_id, "%s", text_of(card, "bus", otherwise));
    return SUCCESS;
}

struct memory_v1 {
    uint64_t total, free, used;
};

struct memory_v2 {
    unsigned version;
    uint64_t total, reserved, free, used;
};

static void fill_memory(const struct card *card, int place, struct memory_v2 *memory)
{
    struct slice slice;
    uint64_t megabytes = number_of(card, "memory_mb", 0);
    if (read_slice(card, place, &slice))
        megabytes = slice.memory_mb;
    memory->total = megabytes << 20;
    memory->used = (number_of(card, "used_mb", 0) + held_megabytes(card)) << 20;
    memory->reserved = number_of(card, "reserved_mb", 0) << 20;
    memory->free = memory->total - memory->used - memory->reserved;
}

/* The first version counts the driver's reserve as used. */
nvmlReturn_t nvmlDeviceGetMemoryInfo(void *handle, struct memory_v1 *memory)
{
    misbehave("STANDIN_NVML_FAULT", "memory");
    CARD_OR_RETURN("memory");
    struct memory_v2 figures = {0};
    fill_memory(card, slice_of(handle), &figures);
    *memory = (struct memory_v1){figures.total, figures.free, figures.used + figures.reserved};
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(void *handle, struct memory_v2 *memory)
{
    misbehave("STANDIN_NVML_FAULT", "memory");
    CARD_OR_RETURN("memory");
    if (told_to_fail(card, "memory_v2"))
        return told_to_fail(card, "memory_v2");
    fill_memory(card, slice_of(handle), memory);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending)
{
    CARD_OR_RETURN("mig");
    const char *mig = text_of(card, "mig", NULL);
    if (!mig)
        return NOT_SUPPORTED; /* a card that cannot be split */
    *current = *pending = strcmp(mig, "off") != 0;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count)
{
    CARD_OR_RETURN("mig");
    *count = MAX_SLICES;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned place, void **out)
{
    CARD_OR_RETURN("mig");
    struct slice slice;
    if (!read_slice(card, (int)place, &slice))
        return NOT_FOUND;
    *out = handle_of(index_of(card), (int)place);
    return SUCCESS;
}

struct attributes {
    unsigned multiprocessors, copy_engines, decoders, encoders, jpeg, ofa;
    unsigned gpu_slices, compute_slices;
    uint64_t memory_mb;
};

nvmlReturn_t nvmlDeviceGetAttributes_v2(void *handle, struct attributes *attributes)
{
    CARD_OR_RETURN("attributes");
    struct slice slice;
    if (!read_slice(card, slice_of(handle), &slice))
        return NOT_SUPPORTED;
    memset(attributes, 0, sizeof *attributes);
    if (sscanf(slice.profile, "%uc.%ug", &attributes->compute_slices, &attributes->gpu_slices) != 2) {
        sscanf(slice.profile, "%ug", &attributes->gpu_slices);
        attributes->compute_slices = attributes->gpu_slices;
    }
    attributes->memory_mb = slice.memory_mb;
    return SUCCESS;
}

struct rates {
    unsigned gpu, memory;
};

nvmlReturn_t nvmlDeviceGetUtilizationRates(void *handle, struct rates *rates)
{
    CARD_OR_RETURN("usage");
    if (slice_of(handle) != NO_SLICE)
        return NOT_SUPPORTED;
    *rates = (struct rates){42, 17};
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *celsius)
{
    (void)sensor;
    CARD_OR_RETURN("usage");
    *celsius = 51;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(void *handle, unsigned *milliwatts)
{
    CARD_OR_RETURN("usage");
    *milliwatts = 123456;
    return SUCCESS;
}

struct process {
    unsigned pid;
    uint64_t used;
    unsigned gpu_instance, compute_instance;
};

static nvmlReturn_t list_processes(void *handle, const char *field, unsigned *count, struct process *list)
{
    CARD_OR_RETURN("processes");
    char text[MAX_TEXT], *rest = NULL;
    unsigned room = *count, found = 0;
    snprintf(text, sizeof text, "%s", text_of(card, field, ""));
    for (char *part = strtok_r(text, "+", &rest); part; part = strtok_r(NULL, "+", &rest), found++) {
        const char *colon = strchr(part, ':');
        if (!colon)
            abort();
        if (list && found < room) {
            list[found] = (struct process){.pid = (unsigned)atoi(part), .used = UINT64_MAX};
            if (colon[1] != '-')
                list[found].used = strtoull(colon + 1, NULL, 10) << 20;
        }
    }
    struct holder holders[MAX_HOLDERS];
    unsigned held = strcmp(field, "procs") ? 0 : read_holders(card, holders);
    for (unsigned i = 0; i < held; i++, found++)
        if (list && found < room)
            list[found] = (struct process){.pid = holders[i].pid, .used = holders[i].megabytes << 20};
    *count = found;
    return found > room || (found && !list) ? TOO_SMALL : SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, struct process *list)
{
    return list_processes(handle, "procs", count, list);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, struct process *list)
{
    return list_processes(handle, "graphics", count, list);
}
