from colossal_llama.commands.prepare_sft_dataset import main
from colossal_llama.quiet import leave_torch_out

if __name__ == "__main__":
    leave_torch_out()
    raise SystemExit(main())
