from colossal_llama.commands.prepare_pretrain_dataset import main

if __name__ == "__main__":
    raise SystemExit(main())
